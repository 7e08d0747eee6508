//go:build integration

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// connectPatience bounds the wait for one packet.
const connectPatience = 20 * time.Second

var connectVersions = []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5}

// connectAnswer is what the server has to say to a CONNECT, in both versions.
type connectAnswer struct {
	// v5 and v311 are the codes in CONNACK.
	v5, v311 byte
	// reason is the reason string of MQTT 5; empty: there is none.
	reason string
	// closed311 says that MQTT 3.1.1 gets no CONNACK at all.
	closed311 bool
}

func (a connectAnswer) code(v rawmqtt.Version) byte {
	if v == rawmqtt.V5 {
		return a.v5
	}
	return a.v311
}

var (
	connectAccepted       = connectAnswer{}
	connectBadCredentials = connectAnswer{v5: 0x86, v311: 4, reason: "bad credentials"}
	connectExpired        = connectAnswer{v5: 0x86, v311: 4, reason: "credentials have expired"}
	connectNotYetValid    = connectAnswer{v5: 0x86, v311: 4, reason: "token is not valid yet"}
	connectWrongIssuer    = connectAnswer{v5: 0x86, v311: 4, reason: "token is from an unknown issuer"}
	connectWrongAudience  = connectAnswer{v5: 0x86, v311: 4, reason: "token is for another audience"}
	connectAnonymousOff   = connectAnswer{v5: 0x87, v311: 5, reason: "credentials are required"}
	connectUserDisabled   = connectAnswer{v5: 0x87, v311: 5, reason: "user is disabled"}
	connectUndecided      = connectAnswer{v5: 0x88, v311: 3, reason: "authorization cannot be reached"}
)

// connectSystem starts a system in which failures do not count against the tests,
// which all come from one address.
func connectSystem(t *testing.T, configure func(*standalone.Config)) *system.System {
	t.Helper()
	return system.Start(t, system.Options{Configure: func(cfg *standalone.Config) {
		cfg.Authorization.Limits.FailuresPerAddress = authorization.FailureLimit{}
		cfg.Authorization.Limits.FailuresPerName = authorization.FailureLimit{}
		if configure != nil {
			configure(cfg)
		}
	}})
}

func connectDial(t *testing.T, address string, v rawmqtt.Version) *rawmqtt.Client {
	t.Helper()
	client, err := rawmqtt.Dial(t.Context(), address, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// connectTry sends a CONNECT and requires an answer. Of a client that is let in it
// returns the connection; one that is not has to be closed.
func connectTry(t *testing.T, address string, v rawmqtt.Version, connect rawmqtt.Connect, want connectAnswer) (*rawmqtt.Client, rawmqtt.Packet) {
	t.Helper()
	client := connectDial(t, address, v)
	if err := client.Send(connect); err != nil {
		t.Fatalf("send CONNECT: %v", err)
	}
	if want.closed311 && v == rawmqtt.V311 {
		connectClosed(t, client)
		return client, rawmqtt.Packet{}
	}
	connack, err := client.Expect(rawmqtt.CONNACK, connectPatience)
	if err != nil {
		t.Fatal(err)
	}
	if connack.Code != want.code(v) {
		t.Fatalf("%v, want code 0x%02x", connack, want.code(v))
	}
	if connack.SessionPresent {
		t.Error("CONNACK says that there is a session: none are stored")
	}
	if reason, _ := connack.Properties.Text(rawmqtt.ReasonString); v == rawmqtt.V5 && reason != want.reason {
		t.Errorf("reason string %q, want %q", reason, want.reason)
	}
	if connack.Code != 0 {
		connectClosed(t, client)
	}
	return client, connack
}

// connectClosed requires that the server closes the connection without a word.
func connectClosed(t *testing.T, client *rawmqtt.Client) {
	t.Helper()
	p, err := client.Read(connectPatience)
	if err == nil {
		t.Fatalf("%v, want a closed connection", p)
	}
	if !connectIsClosed(err) {
		t.Fatalf("%v, want a closed connection", err)
	}
}

func connectIsClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// connectSubscribe subscribes and returns the code of SUBACK.
func connectSubscribe(t *testing.T, client *rawmqtt.Client, filter string) byte {
	t.Helper()
	suback, err := client.Exchange(rawmqtt.Subscribe{PacketID: 1, Filters: []rawmqtt.Filter{{Filter: filter, Options: 1}}},
		rawmqtt.SUBACK, connectPatience)
	if err != nil {
		t.Fatal(err)
	}
	if len(suback.Codes) != 1 {
		t.Fatalf("%v, want one code", suback)
	}
	return suback.Codes[0]
}

// connectAdminister makes a call as administrator.
func connectAdminister(t *testing.T, s *system.System, call func(ctx context.Context, admin adminv1.AdminServiceClient) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.AdministratorContext(t.Context()), connectPatience)
	defer cancel()
	if err := call(ctx, s.Admin); err != nil {
		t.Fatalf("administration: %v", err)
	}
}

// connectAs is a CONNECT with user name and password; an absent one is nil.
func connectAs(t *testing.T, username, password *string) rawmqtt.Connect {
	t.Helper()
	return rawmqtt.Connect{ClientID: testkit.UniqueName(t), CleanStart: true, Username: username, Password: password}
}

// flipped is a token or an API key with another character in the middle of its last
// part, where all bits of it count.
func flipped(text string) string {
	separator := "."
	if !strings.Contains(text, separator) {
		separator = "_"
	}
	at := strings.LastIndex(text, separator) + 5
	other := byte('A')
	if text[at] == other {
		other = 'B'
	}
	return text[:at] + string(other) + text[at+1:]
}

// The table of user names and passwords, row by row. What somebody may read
// afterwards shows who the server thinks it is.
func TestConnectCredentials(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	strict := connectSystem(t, func(cfg *standalone.Config) { cfg.Authorization.Anonymous.Enabled = false })

	owner, stranger := s.CreateUser(t), s.CreateUser(t)
	private := s.CreateApplicationOf(t, owner, 1)
	open := s.CreateApplicationOf(t, stranger, 1)
	s.SetMember(t, open.Name, "", adminv1.Role_ROLE_READER)
	token := s.Token(t, owner, nil)
	strictOwner := strict.CreateUser(t)
	strictApplication := strict.CreateApplicationOf(t, strictOwner, 1)
	empty, word := "", "word"

	const (
		nobody = iota
		anonymous
		asOwner
		asStrictOwner
	)
	tests := []struct {
		name               string
		at                 *system.System
		username, password *string
		want               connectAnswer
		who                int
	}{
		{"nothing is anonymous where that is allowed", s, nil, nil, connectAccepted, anonymous},
		{"empty strings are anonymous", s, &empty, &empty, connectAccepted, anonymous},
		{"an empty user name is anonymous", s, &empty, nil, connectAccepted, anonymous},
		{"nothing where anonymous is off", strict, nil, nil, connectAnonymousOff, nobody},
		{"empty strings where anonymous is off", strict, &empty, &empty, connectAnonymousOff, nobody},

		{"token as user name", s, &token, nil, connectAccepted, asOwner},
		{"token as user name, empty password", s, &token, &empty, connectAccepted, asOwner},
		{"user name that is no token", s, &word, nil, connectBadCredentials, nobody},
		{"login name alone", s, &owner.Name, nil, connectBadCredentials, nobody},
		{"login name, empty password", s, &owner.Name, &empty, connectBadCredentials, nobody},
		{"API key as user name", s, &owner.Key, nil, connectBadCredentials, nobody},

		{"token as password", s, nil, &token, connectAnswer{closed311: true}, asOwner},
		{"token as password, empty user name", s, &empty, &token, connectAccepted, asOwner},
		{
			"password that is no token", s, nil, &word,
			connectAnswer{v5: 0x86, reason: "bad credentials", closed311: true},
			nobody,
		},
		{"password that is no token, empty user name", s, &empty, &word, connectBadCredentials, nobody},
		{"API key as password, empty user name", s, &empty, &owner.Key, connectBadCredentials, nobody},
		{"empty password without user name", s, nil, &empty, connectAnswer{closed311: true}, anonymous},

		{"user name with API key", s, &owner.Name, &owner.Key, connectAccepted, asOwner},
		{"user name with API key where anonymous is off", strict, &strictOwner.Name, &strictOwner.Key, connectAccepted, asStrictOwner},

		{"user name with token", s, &owner.Name, &token, connectBadCredentials, nobody},
		{"token twice", s, &token, &token, connectBadCredentials, nobody},
		{"user name with another password", s, &owner.Name, &word, connectBadCredentials, nobody},
		{"user name with another user's key", s, &owner.Name, &stranger.Key, connectBadCredentials, nobody},
		{"unknown user name with a key", s, &word, &owner.Key, connectBadCredentials, nobody},
		{"subject instead of the login name", s, &owner.Subject, &owner.Key, connectBadCredentials, nobody},
		{"key of another installation", strict, &owner.Name, &owner.Key, connectBadCredentials, nobody},
		{"changed key", s, &owner.Name, new(flipped(owner.Key)), connectBadCredentials, nobody},
		{"cut key", s, &owner.Name, new(owner.Key[:len(owner.Key)-1]), connectBadCredentials, nobody},
		{"login name in other case", s, new(strings.ToUpper(owner.Name)), &owner.Key, connectBadCredentials, nobody},
	}
	for _, tt := range tests {
		for _, v := range connectVersions {
			t.Run(fmt.Sprintf("%s/%s", tt.name, v), func(t *testing.T) {
				t.Parallel()
				client, _ := connectTry(t, tt.at.MQTT(), v, connectAs(t, tt.username, tt.password), tt.want)
				if tt.who == nobody || (tt.want.closed311 && v == rawmqtt.V311) {
					return
				}
				denied := byte(0x87)
				if v == rawmqtt.V311 {
					denied = 0x80
				}
				want := map[string]byte{private.Name: denied, open.Name: 1, strictApplication.Name: denied}
				switch tt.who {
				case asOwner:
					want[private.Name] = 1
				case asStrictOwner:
					// An unknown application and a forbidden one look the same.
					want[strictApplication.Name], want[open.Name] = 1, denied
				}
				for application, code := range want {
					if got := connectSubscribe(t, client, "app/"+application); got != code {
						t.Errorf("SUBACK 0x%02x for %s, want 0x%02x", got, application, code)
					}
				}
			})
		}
	}
}

// A client that has sent nothing to sign in with is told apart from one with a bad
// password, in no more detail than that: who guesses learns nothing about users.
func TestConnectRefusalsSayNothingAboutUsers(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	known := s.CreateUser(t)
	revoked := s.CreateUser(t)
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RevokeApiKey(ctx, &adminv1.RevokeApiKeyRequest{Id: revoked.KeyID})
		return err
	})
	var first rawmqtt.Packet
	for i, attempt := range []struct{ username, password string }{
		{known.Name, "wrong"}, {"nobody", "wrong"}, {"nobody", known.Key}, {known.Name, flipped(known.Key)}, {revoked.Name, revoked.Key},
	} {
		_, connack := connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, &attempt.username, &attempt.password), connectBadCredentials)
		if i == 0 {
			first = connack
		}
		if len(connack.Properties) != len(first.Properties) || connack.Size != first.Size {
			t.Errorf("attempt %d: CONNACK %v differs from %v", i, connack.Properties, first.Properties)
		}
	}
}

// After too many failures, the right key does not help either, and other users at
// the same address are not locked out.
func TestConnectAttemptsAreLimited(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Configure: func(cfg *standalone.Config) {
		cfg.Authorization.Limits.FailuresPerName = authorization.FailureLimit{Burst: 3, Recovery: time.Hour}
	}})
	victim, other := s.CreateUser(t), s.CreateUser(t)
	wrong := "wrong"
	for range 3 {
		connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, &victim.Name, &wrong), connectBadCredentials)
	}
	limited := connectAnswer{v5: 0x9f, v311: 3, reason: "too many failed attempts"}
	for _, v := range connectVersions {
		connectTry(t, s.MQTT(), v, connectAs(t, &victim.Name, &victim.Key), limited)
		connectTry(t, s.MQTT(), v, connectAs(t, &other.Name, &other.Key), connectAccepted)
	}
}
