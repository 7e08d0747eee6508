//go:build integration

package integration_test

import (
	"context"
	"fmt"
	"testing"

	"mqtt-integration/libs/testkit/issuer"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

func connectDisable(t *testing.T, s *system.System, user string, disabled bool) {
	t.Helper()
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.UpdateUser(ctx, &adminv1.UpdateUserRequest{Name: user, Disabled: &disabled})
		return err
	})
}

func TestConnectPermission(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, func(cfg *standalone.Config) { cfg.Authorization.Anonymous.Enabled = false })
	user := s.CreateUser(t)
	token := s.Token(t, user, nil)
	wrong := "wrong"

	for _, v := range connectVersions {
		t.Run("anonymous is off/"+v.String(), func(t *testing.T) {
			connectTry(t, s.MQTT(), v, connectAs(t, nil, nil), connectAnonymousOff)
		})
	}
	for _, disabled := range []bool{true, false} {
		connectDisable(t, s, user.Name, disabled)
		want := connectAccepted
		if disabled {
			want = connectUserDisabled
		}
		for _, v := range connectVersions {
			t.Run(fmt.Sprintf("disabled %v/%s", disabled, v), func(t *testing.T) {
				connectTry(t, s.MQTT(), v, connectAs(t, &user.Name, &user.Key), want)
				connectTry(t, s.MQTT(), v, connectAs(t, &token, nil), want)
				// That the user is disabled is for the user to know.
				connectTry(t, s.MQTT(), v, connectAs(t, &user.Name, &wrong), connectBadCredentials)
			})
		}
	}
}

// connectRelayed starts a system whose frontend reaches authorization through a
// relay.
func connectRelayed(t *testing.T, configure func(*standalone.Config)) (*system.System, *system.Relay) {
	t.Helper()
	address := system.FreeAddress(t)
	relay := system.NewRelay(t, address)
	s := connectSystem(t, func(cfg *standalone.Config) {
		cfg.Authorization.GRPC.Address = address
		cfg.MQTTFrontend.Authorization.Addresses = []string{relay.Address()}
		if configure != nil {
			configure(cfg)
		}
	})
	return s, relay
}

// While nobody can say who it is, nobody is let in, and nobody is told that the
// password is wrong.
func TestConnectWithoutAuthorization(t *testing.T) {
	t.Parallel()
	s, relay := connectRelayed(t, nil)
	user := s.CreateUser(t)
	token := s.Token(t, user, nil)
	wrong := "wrong"
	attempts := []struct {
		name               string
		username, password *string
		back               connectAnswer // when authorization is back
	}{
		{"API key", &user.Name, &user.Key, connectAccepted},
		{"token", &token, nil, connectAccepted},
		{"anonymous", nil, nil, connectAccepted},
		{"wrong password", &user.Name, &wrong, connectBadCredentials},
	}
	for _, a := range attempts {
		connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, a.username, a.password), a.back)
	}
	relay.Cut()
	// All at once: each has to wait until the frontend gives up.
	type attempt struct {
		name   string
		client *rawmqtt.Client
	}
	var waiting []attempt
	for _, a := range attempts {
		for _, v := range connectVersions {
			client := connectDial(t, s.MQTT(), v)
			if err := client.Send(connectAs(t, a.username, a.password)); err != nil {
				t.Fatal(err)
			}
			waiting = append(waiting, attempt{a.name + "/" + v.String(), client})
		}
	}
	for _, a := range waiting {
		connack, err := a.client.Expect(rawmqtt.CONNACK, connectPatience)
		if err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		want := connectUndecided
		reason, _ := connack.Properties.Text(rawmqtt.ReasonString)
		if connack.Code != want.code(a.client.Version()) || (a.client.Version() == rawmqtt.V5 && reason != want.reason) {
			t.Errorf("%s: %v, want 0x%02x %q", a.name, connack, want.code(a.client.Version()), want.reason)
		}
		connectClosed(t, a.client)
	}
	relay.Restore()
	t.Run("back", func(t *testing.T) {
		for _, a := range attempts {
			for _, v := range connectVersions {
				t.Run(a.name+"/"+v.String(), func(t *testing.T) {
					t.Parallel()
					connectEventually(t, func() error {
						code, err := connectCode(t, s.MQTT(), v, connectAs(t, a.username, a.password))
						if err == nil && code != a.back.code(v) {
							err = fmt.Errorf("CONNACK 0x%02x, want 0x%02x", code, a.back.code(v))
						}
						return err
					})
				})
			}
		}
	})
}

// connectCode is the code of CONNACK.
func connectCode(t *testing.T, address string, v rawmqtt.Version, connect rawmqtt.Connect) (byte, error) {
	t.Helper()
	client := connectDial(t, address, v)
	defer client.Close()
	connack, err := client.Exchange(connect, rawmqtt.CONNACK, connectPatience)
	return connack.Code, err
}

// An outage of the OIDC provider is not the fault of a token whose key is not known
// yet. Keys that are known, API keys and anonymous clients do not need it.
func TestConnectWithoutOIDCProvider(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	mint := func(keyID string) string {
		t.Helper()
		token, err := s.Issuer().MintToken(issuer.Token{Claims: map[string]any{"sub": user.Subject}, KeyID: keyID})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	before := mint("")
	connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, &before, nil), connectAccepted)

	s.Issuer().SetAvailable(false)
	if err := s.Issuer().Rotate(true); err != nil {
		t.Fatal(err)
	}
	rotated, unknown, forged := mint(""), mint("no-such-key"), flipped(before)
	undecided := connectUndecided
	for _, v := range connectVersions {
		connectTry(t, s.MQTT(), v, connectAs(t, &rotated, nil), undecided)
		connectTry(t, s.MQTT(), v, connectAs(t, &unknown, nil), undecided)
		connectTry(t, s.MQTT(), v, connectAs(t, &before, nil), connectAccepted)
		connectTry(t, s.MQTT(), v, connectAs(t, &forged, nil), connectBadCredentials)
		connectTry(t, s.MQTT(), v, connectAs(t, &user.Name, &user.Key), connectAccepted)
		connectTry(t, s.MQTT(), v, connectAs(t, nil, nil), connectAccepted)
	}

	s.Issuer().SetAvailable(true)
	for _, v := range connectVersions {
		connectEventually(t, func() error {
			code, err := connectCode(t, s.MQTT(), v, connectAs(t, &rotated, nil))
			if err == nil && code != 0 {
				err = fmt.Errorf("CONNACK 0x%02x for a token with a new key, want 0", code)
			}
			return err
		})
	}
	connectEventually(t, func() error {
		code, err := connectCode(t, s.MQTT(), rawmqtt.V5, connectAs(t, &unknown, nil))
		if err == nil && code != 0x86 {
			err = fmt.Errorf("CONNACK 0x%02x for a key that there is not, want 0x86", code)
		}
		return err
	})
}

// A provider may rotate its keys at any time, and withdraw old ones.
func TestConnectAfterKeyRotation(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	for range 2 {
		token := s.Token(t, user, nil)
		for _, v := range connectVersions {
			connectTry(t, s.MQTT(), v, connectAs(t, &token, nil), connectAccepted)
		}
		if err := s.Issuer().Rotate(true); err != nil {
			t.Fatal(err)
		}
	}
}

// What signs in at the frontend whose connections are all taken is told to come
// back.
func TestConnectOverload(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, func(cfg *standalone.Config) { cfg.MQTTFrontend.MQTT.MaxConnections = 1 })
	first, _ := connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, nil, nil), connectAccepted)
	for _, v := range connectVersions {
		code, err := connectCode(t, s.MQTT(), v, connectAs(t, nil, nil))
		want := connectAnswer{v5: 0x89, v311: 3}.code(v)
		if err != nil || code != want {
			t.Errorf("%s: CONNACK 0x%02x, %v, want 0x%02x", v, code, err, want)
		}
	}
	first.Close()
	connectEventually(t, func() error {
		code, err := connectCode(t, s.MQTT(), rawmqtt.V5, connectAs(t, nil, nil))
		if err == nil && code != 0 {
			err = fmt.Errorf("CONNACK 0x%02x once there is room, want 0", code)
		}
		return err
	})
}

func TestConnectUnknownAuthenticationMethod(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	connect := connectAs(t, &user.Name, &user.Key)
	connect.Properties = rawmqtt.Properties{rawmqtt.Text(rawmqtt.AuthenticationMethod, "SCRAM-SHA-1"), rawmqtt.Text(rawmqtt.AuthenticationData, "n,,")}
	code, err := connectCode(t, s.MQTT(), rawmqtt.V5, connect)
	if err != nil || code != 0x8c {
		t.Errorf("CONNACK 0x%02x, %v, want 0x8c", code, err)
	}
}
