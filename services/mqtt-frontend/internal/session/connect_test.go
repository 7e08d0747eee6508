package session_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

func TestCredentialsOfConnect(t *testing.T) {
	t.Parallel()
	flags := func(user, password bool) func(*packets.Packet) {
		return func(pk *packets.Packet) { pk.Connect.UsernameFlag, pk.Connect.PasswordFlag = user, password }
	}
	for _, tt := range []struct {
		name           string
		user, password string
		change         func(*packets.Packet)
		want           access.Credentials
		code5, code4   byte
	}{
		{name: "nothing is anonymous", want: access.Credentials{Anonymous: true}},
		{name: "empty strings are nothing", change: flags(true, true), want: access.Credentials{Anonymous: true}},
		{name: "token as user name", user: "token", want: access.Credentials{Token: "token"}},
		{name: "token as user name, empty password", user: "token", change: flags(true, true), want: access.Credentials{Token: "token"}},
		{name: "token as password, empty user name", password: "token", change: flags(true, true), want: access.Credentials{Token: "token"}},
		{name: "a name that is no token", user: "anna", want: access.Credentials{Token: "anna"}, code5: 0x86, code4: 4},
		{name: "API key", user: "anna", password: "key", want: access.Credentials{UserName: "anna", APIKey: "key"}},
		{name: "bad API key", user: "anna", password: "token", want: access.Credentials{UserName: "anna", APIKey: "token"}, code5: 0x86, code4: 4},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				f := newFrontend(t)
				c := f.dial(level)
				change := tt.change
				if change == nil {
					change = func(*packets.Packet) {}
				}
				c.Send(mqtttest.Connect(level, "c", tt.user, tt.password, change))
				k := c.Want(packets.Connack)
				if want := map[byte]byte{4: tt.code4, 5: tt.code5}[level]; k.ReasonCode != want {
					t.Errorf("CONNACK %#x, want %#x", k.ReasonCode, want)
				}
				if k.ReasonCode != 0 {
					c.WantClosed()
				}
				f.access.mu.Lock()
				defer f.access.mu.Unlock()
				got := f.access.presented[0]
				if got.ConnectionID == "" || got.ClientAddress == "" {
					t.Errorf("no connection id or address in %+v", got)
				}
				got.ConnectionID, got.ClientAddress = "", ""
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("credentials (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestPasswordWithoutUserName(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.dial(5)
	c.Send(mqtttest.Connect(5, "c", "", "token"))
	if k := c.Want(packets.Connack); k.ReasonCode != 0 {
		t.Errorf("MQTT 5: CONNACK %#x", k.ReasonCode)
	}
	c = f.dial(4)
	c.Send(mqtttest.Connect(4, "c", "", "token")) // [MQTT-3.1.2-22]
	c.WantClosed()
}

func TestRefusalsOfConnect(t *testing.T) {
	t.Parallel()
	denial := func(r authorizationv1.AuthenticationDenialReason) func(*frontend) {
		return func(f *frontend) { f.access.denial = &access.Denial{Reason: r, Message: "because"} }
	}
	deny := func(r authorizationv1.AuthorizationDenialReason) func(*frontend) {
		return func(f *frontend) {
			f.access.denied[question(authorizationv1.Permission_PERMISSION_CONNECT, "")] = r
		}
	}
	broken := func(err error) func(*frontend) { return func(f *frontend) { f.access.err = err } }
	connect := func(change func(*packets.Packet)) func(*packets.Packet) { return change }
	for _, tt := range []struct {
		name    string
		prepare func(*frontend)
		change  func(*packets.Packet)
		code5   byte
		code4   byte
		reason  string
	}{
		{name: "bad credentials", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS), code5: 0x86, code4: 4, reason: "because"},
		{name: "expired", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_EXPIRED), code5: 0x86, code4: 4, reason: "because"},
		{name: "not yet valid", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_NOT_YET_VALID), code5: 0x86, code4: 4, reason: "because"},
		{name: "wrong issuer", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_ISSUER), code5: 0x86, code4: 4, reason: "because"},
		{name: "wrong audience", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_AUDIENCE), code5: 0x86, code4: 4, reason: "because"},
		{name: "anonymous off", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_ANONYMOUS_DISABLED), code5: 0x87, code4: 5, reason: "because"},
		{name: "user disabled", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_USER_DISABLED), code5: 0x87, code4: 5, reason: "because"},
		{name: "too many attempts", prepare: denial(authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_TOO_MANY_ATTEMPTS), code5: 0x9f, code4: 3, reason: "because"},
		{name: "authorization unreachable", prepare: broken(access.ErrUnavailable), code5: 0x88, code4: 3, reason: "authorization cannot be reached"},
		{name: "authorization overloaded", prepare: broken(fmt.Errorf("%w: %w", access.ErrOverloaded, access.ErrUnavailable)), code5: 0x89, code4: 3, reason: "authorization is overloaded"},
		{name: "key revoked meanwhile", prepare: deny(authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED), code5: 0x86, code4: 4, reason: "the credential was revoked"},
		{name: "user disabled meanwhile", prepare: deny(authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_USER_DISABLED), code5: 0x87, code4: 5, reason: "not authorized to connect"},
		{name: "token that ends now", prepare: func(f *frontend) { f.access.expires = time.Now() }, code5: 0x86, code4: 4, reason: "the credential has expired"},
		{name: "client identifier of 257 bytes", change: connect(func(pk *packets.Packet) { pk.Connect.ClientIdentifier = strings.Repeat("x", 257) }), code5: 0x85, code4: 2, reason: "client identifier longer than 256 bytes"},
		{name: "will", change: connect(func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "command/a/b/c", []byte("x")
		}), code5: 0x83, code4: 5, reason: "will messages are not supported yet"},
		{name: "authentication method", change: connect(func(pk *packets.Packet) { pk.Properties.AuthenticationMethod = "x" }), code5: 0x8c, code4: 0, reason: "authentication methods are not supported yet"},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				f := newFrontend(t)
				if tt.prepare != nil {
					tt.prepare(f)
				}
				c := f.dial(level)
				change := tt.change
				if change == nil {
					change = func(*packets.Packet) {}
				}
				c.Send(mqtttest.Connect(level, "c", "anna", "key", change))
				k := c.Want(packets.Connack)
				if want := map[byte]byte{4: tt.code4, 5: tt.code5}[level]; k.ReasonCode != want {
					t.Errorf("CONNACK %#x, want %#x", k.ReasonCode, want)
				}
				if k.ReasonCode == 0 {
					return
				}
				if level == 5 && k.Properties.ReasonString != tt.reason {
					t.Errorf("reason %q, want %q", k.Properties.ReasonString, tt.reason)
				}
				c.WantClosed()
				eventually(t, "no watch is left", func() bool {
					f.access.mu.Lock()
					defer f.access.mu.Unlock()
					return len(f.access.changed) == 0
				})
				if log := f.log.String(); !strings.Contains(log, "connection refused") || strings.Contains(log, "password") {
					t.Errorf("log:\n%s", log)
				}
			})
		}
	}
}

func TestConnackTellsTheTruth(t *testing.T) {
	t.Parallel()
	f := newFrontend(t, func(s *session.Settings) { s.MaxKeepAlive = 600 })
	f.commands.limit = 512 << 10
	c := f.dial(5)
	c.Send(mqtttest.Connect(5, "", "anna", "key", func(pk *packets.Packet) {
		pk.Connect.Clean = false
		pk.Connect.Keepalive = 601
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 60, true
	}))
	k := c.Want(packets.Connack)
	if !strings.HasPrefix(k.Properties.AssignedClientID, "auto-") {
		t.Errorf("assigned client identifier %q", k.Properties.AssignedClientID)
	}
	k.Properties.AssignedClientID = ""
	want := packets.Properties{
		ReceiveMaximum: 100, MaximumPacketSize: 512<<10 - 4<<10, TopicAliasMaximum: 32,
		RetainAvailableFlag: true, WildcardSubAvailableFlag: true, SubIDAvailable: 1, SubIDAvailableFlag: true,
		SharedSubAvailableFlag: true, SharedSubAvailable: 1, SessionExpiryIntervalFlag: true, ServerKeepAlive: 600, ServerKeepAliveFlag: true,
	}
	if diff := cmp.Diff(want, k.Properties); diff != "" || k.SessionPresent {
		t.Errorf("session present %t, properties (-want +got):\n%s", k.SessionPresent, diff)
	}
}

func TestClientIdentifier(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	persistent := func(pk *packets.Packet) { pk.Connect.Clean = false }
	for _, tt := range []struct {
		name   string
		level  byte
		id     string
		change func(*packets.Packet)
		code   byte
	}{
		{name: "3.1.1 empty with clean session 0", level: 4, change: persistent, code: 2},
		{name: "3.1.1 empty with clean session 1", level: 4, change: func(*packets.Packet) {}},
		{name: "3.1.1 clean session 0 has session present 0", level: 4, id: "x", change: persistent},
		{name: "256 bytes", level: 5, id: strings.Repeat("x", 256), change: persistent},
		{name: "not ASCII", level: 4, id: "Grüße/+#", change: persistent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := f.dial(tt.level)
			c.Send(mqtttest.Connect(tt.level, tt.id, "anna", "key", tt.change))
			if k := c.Want(packets.Connack); k.ReasonCode != tt.code || k.SessionPresent {
				t.Errorf("CONNACK %#x, session present %t", k.ReasonCode, k.SessionPresent)
			}
		})
	}
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	f := newFrontend(t, func(s *session.Settings) { s.MaxConnections = 2 })
	a := f.connect(5, "a")
	f.connect(4, "b")
	for level, want := range map[byte]byte{4: 3, 5: 0x89} {
		c := f.dial(level)
		c.Send(mqtttest.Connect(level, "c", "anna", "key"))
		if k := c.Want(packets.Connack); k.ReasonCode != want {
			t.Errorf("level %d: CONNACK %#x, want %#x", level, k.ReasonCode, want)
		}
		c.WantClosed()
	}
	a.Send([]byte{0xe0, 0})
	a.WantClosed()
	f.connect(5, "c")
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	first := f.connect(5, "same")
	second := f.connect(4, "same")
	if d := first.WantClosed(); d == nil || d.ReasonCode != 0x8e {
		t.Errorf("the first connection got %v, want DISCONNECT 0x8e", d)
	}
	eventually(t, "a line in the log that says why", func() bool {
		for line := range strings.Lines(f.log.String()) {
			if strings.Contains(line, `msg="connection ended by us" client_id=same principal=local/anna remote_address=`) &&
				strings.Contains(line, "reason=taken_over code=0x8e") {
				return true
			}
		}
		return false
	})
	third := f.connect(5, "same")
	if d := second.WantClosed(); d != nil {
		t.Error("DISCONNECT to MQTT 3.1.1")
	}
	other := f.dial(5)
	other.Send(mqtttest.Connect(5, "same", "bert", "key"))
	other.Want(packets.Connack)
	for range 2 {
		anonymous := f.dial(5)
		anonymous.Send(mqtttest.Connect(5, "same", "", ""))
		anonymous.Want(packets.Connack)
		anonymous.Ping()
	}
	third.Ping()
	other.Ping()
	var epochs []uint64
	for _, s := range f.events.sessions {
		epochs = append(epochs, s.info.Epoch)
	}
	if !slices.IsSorted(epochs) || len(slices.Compact(epochs)) != len(f.events.sessions) {
		t.Errorf("epochs %v are not in the order of the connections", epochs)
	}
}

// The reader of the first connection is held up by commands that wait for Kafka.
func TestTakeoverOfABusyConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t, func(s *session.Settings) { s.ReceiveMaximum = 1 })
		f.commands.hold()
		first := f.connect(4, "same")
		for id := range uint16(3) {
			go func() { _ = first.TrySend(mqtttest.Publish(4, 1, id+1, topic, "x")) }()
			synctest.Wait()
		}
		begin := time.Now()
		f.connect(4, "same").Ping()
		first.WantClosed()
		eventually(t, "detached", func() bool {
			f.events.mu.Lock()
			defer f.events.mu.Unlock()
			return len(f.events.sessions[0].detached) == 1
		})
		if took := time.Since(begin); took > time.Second {
			t.Errorf("took %v", took)
		}
		f.commands.release()
	})
}

// Trap: the library waits for the old socket without end.
func TestStuckSocketDelaysTakeoverByTheWriteTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t)
		_, sub := f.stalled(5, "same")
		sub.deliver(t, 10) // the client reads none of them
		synctest.Wait()
		begin := time.Now()
		f.connect(5, "same").Ping()
		if took := time.Since(begin); took > defaults().WriteTimeout {
			t.Errorf("took %v, want at most the write timeout", took)
		}
	})
}

func TestTakeoverStormLeavesOne(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	const n = 50
	clients := make([]*mqtttest.Client, n)
	for i := range clients {
		clients[i] = f.dial(5)
	}
	done := make(chan struct{})
	for _, c := range clients {
		go func() {
			_ = c.TrySend(mqtttest.Connect(5, "same", "anna", "key"))
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	// The one that is left is the one that no other was told to go for.
	alive := 0
	for _, c := range clients {
		for {
			pk, err := c.TryNext(2 * time.Second)
			if err != nil {
				if errors.Is(err, mqtttest.ErrTimeout) {
					alive++
				}
				break
			}
			if pk.FixedHeader.Type == packets.Disconnect && pk.ReasonCode != 0x8e {
				t.Errorf("DISCONNECT %#x", pk.ReasonCode)
			}
		}
	}
	if alive != 1 {
		t.Errorf("%d connections are alive, want 1", alive)
	}
}

func TestConnectionEndsWithItsCredential(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		synctest.Test(t, func(t *testing.T) {
			f := newFrontend(t, func(s *session.Settings) { s.TokenGrace = time.Second })
			f.access.expires = time.Now().Add(time.Hour)
			c := f.dial(level)
			c.Send(mqtttest.Connect(level, "c", "token", ""))
			c.Want(packets.Connack)
			c.WantNothing(time.Hour + time.Second - 1)
			d := c.WantClosed()
			switch {
			case level == 4 && d != nil:
				t.Error("DISCONNECT to MQTT 3.1.1")
			case level == 5 && (d == nil || d.ReasonCode != 0x87 || d.Properties.ReasonString != "access token expired"):
				t.Errorf("got %v", d)
			}
		})
	}
}

func TestAccessThatEnds(t *testing.T) {
	t.Parallel()
	const (
		connect = authorizationv1.Permission_PERMISSION_CONNECT
		read    = authorizationv1.Permission_PERMISSION_READ
		write   = authorizationv1.Permission_PERMISSION_WRITE
		revoked = authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED
		granted = authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED
	)
	for _, tt := range []struct {
		name   string
		change func(*fakeAccess)
		code   byte // 0: the connection stays
		reason string
	}{
		{name: "key revoked", change: func(a *fakeAccess) { a.denied[question(connect, "")] = revoked }, code: 0x87, reason: "the credential was revoked"},
		{name: "member removed", change: func(a *fakeAccess) { a.denied[question(read, "a")] = granted }, code: 0x87, reason: "not authorized to read a any more"},
		{name: "something else changed", change: func(a *fakeAccess) { a.denied[question(read, "b")] = granted }},
		{name: "may no longer write", change: func(a *fakeAccess) { a.denied[question(write, "a")] = granted }},
		{name: "authorization unreachable", change: func(a *fakeAccess) { a.err = access.ErrUnavailable }, code: 0x83, reason: "authorization cannot be reached"},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFrontend(t)
					c, _ := f.subscribe(level, "c")
					f.access.change(func() { tt.change(f.access) })
					if tt.code == 0 {
						c.WantNothing(time.Hour)
						return
					}
					d := c.WantClosed()
					if level == 5 && (d == nil || d.ReasonCode != tt.code || d.Properties.ReasonString != tt.reason) {
						t.Errorf("got %v, want DISCONNECT %#x %q", d, tt.code, tt.reason)
					}
				})
			})
		}
	}
}
