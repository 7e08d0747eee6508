//go:build integration

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// revocationLimit is how long a right may outlive its end on a live connection.
const revocationLimit = 2 * time.Second

// connectEventually polls until a condition holds.
func connectEventually(t *testing.T, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(connectPatience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", connectPatience, err)
		}
		<-tick.C
	}
}

// connectEnded requires that the server ends a connection within a time, with a
// DISCONNECT in MQTT 5.
func connectEnded(t *testing.T, client *rawmqtt.Client, limit time.Duration, code byte, reason string) {
	t.Helper()
	began := time.Now()
	if client.Version() == rawmqtt.V5 {
		p, err := client.Expect(rawmqtt.DISCONNECT, limit)
		if err != nil {
			t.Fatalf("%v, want DISCONNECT 0x%02x within %v", err, code, limit)
		}
		if got, _ := p.Properties.Text(rawmqtt.ReasonString); p.Code != code || got != reason {
			t.Errorf("DISCONNECT 0x%02x %q, want 0x%02x %q", p.Code, got, code, reason)
		}
	} else if p, err := client.Read(limit); err == nil || !connectIsClosed(err) {
		t.Fatalf("%v, %v, want a closed connection within %v", p, err, limit)
	}
	if took := time.Since(began); took > limit {
		t.Errorf("ended after %v, want %v at most", took, limit)
	}
	connectClosed(t, client)
}

// connectBoth connects a client of each version.
func connectBoth(t *testing.T, s *system.System, username, password *string) []*rawmqtt.Client {
	t.Helper()
	var clients []*rawmqtt.Client
	for _, v := range connectVersions {
		client, _ := connectTry(t, s.MQTT(), v, connectAs(t, username, password), connectAccepted)
		clients = append(clients, client)
	}
	return clients
}

func connectBothSubscribed(t *testing.T, s *system.System, username, password *string, application string) []*rawmqtt.Client {
	t.Helper()
	clients := connectBoth(t, s, username, password)
	for _, client := range clients {
		if code := connectSubscribe(t, client, "app/"+application); code != 1 {
			t.Fatalf("SUBACK 0x%02x for %s, want 0x01", code, application)
		}
	}
	return clients
}

// connectAllAlive requires that nothing has happened to connections.
func connectAllAlive(t *testing.T, clients ...*rawmqtt.Client) {
	t.Helper()
	for _, client := range clients {
		connectPing(t, client)
	}
}

func TestConnectRevokedKeyEndsItsConnections(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	otherID, otherKey := s.CreateKey(t, user.Name)
	token := s.Token(t, user, nil)
	doomed := append(connectBoth(t, s, &user.Name, &user.Key),
		connectBothSubscribed(t, s, &user.Name, &user.Key, application.Name)...)
	spared := append(connectBothSubscribed(t, s, &user.Name, &otherKey, application.Name), connectBoth(t, s, &token, nil)...)
	spared = append(spared, connectBoth(t, s, nil, nil)...)

	revoke := func(id string) {
		connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
			_, err := admin.RevokeApiKey(ctx, &adminv1.RevokeApiKeyRequest{Id: id})
			return err
		})
	}
	revoke(user.KeyID)
	deadline := time.Now().Add(revocationLimit)
	for _, client := range doomed {
		connectEnded(t, client, max(time.Until(deadline), time.Millisecond), 0x87, "the credential was revoked")
	}
	connectAllAlive(t, spared...)
	for _, v := range connectVersions {
		connectTry(t, s.MQTT(), v, connectAs(t, &user.Name, &user.Key), connectBadCredentials)
	}
	revoke(otherID)
	connectEnded(t, spared[1], revocationLimit, 0x87, "the credential was revoked")
}

func TestConnectRemovedMemberLosesTheSubscription(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	member, owner := s.CreateUser(t), s.CreateUser(t)
	left, kept := s.CreateApplicationOf(t, owner, 1), s.CreateApplicationOf(t, owner, 1)
	for _, application := range []string{left.Name, kept.Name} {
		s.SetMember(t, application, member.Name, adminv1.Role_ROLE_READER)
	}
	token := s.Token(t, member, nil)
	doomed := append(connectBothSubscribed(t, s, &member.Name, &member.Key, left.Name), connectBothSubscribed(t, s, &token, nil, left.Name)...)
	spared := append(connectBothSubscribed(t, s, &member.Name, &member.Key, kept.Name), connectBoth(t, s, &member.Name, &member.Key)...)
	spared = append(spared, connectBothSubscribed(t, s, &owner.Name, &owner.Key, left.Name)...)

	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: left.Name, User: member.Name})
		return err
	})
	deadline := time.Now().Add(revocationLimit)
	for _, client := range doomed {
		connectEnded(t, client, max(time.Until(deadline), time.Millisecond), 0x87, "not authorized to read "+left.Name+" any more")
	}
	connectAllAlive(t, spared...)
	testkit.Produce(t, s.Brokers, left.Topic, testkit.Record{Value: []byte("for the owner alone")})
	if p, err := spared[len(spared)-1].Expect(rawmqtt.PUBLISH, connectPatience); err != nil || p.Topic != "app/"+left.Name {
		t.Errorf("%v, %v, want the event for the owner", p, err)
	}
}

// Who is a member with a role that cannot read loses the subscription as well, and
// what everyone may, nobody loses.
func TestConnectChangedRole(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	member := s.CreateUser(t)
	application := s.CreateApplication(t, 1)
	s.SetMember(t, application.Name, member.Name, adminv1.Role_ROLE_MANAGER)
	readers := connectBothSubscribed(t, s, &member.Name, &member.Key, application.Name)
	s.SetMember(t, application.Name, member.Name, adminv1.Role_ROLE_PUBLISHER)
	for _, client := range readers {
		connectEnded(t, client, revocationLimit, 0x87, "not authorized to read "+application.Name+" any more")
	}

	s.SetMember(t, application.Name, "", adminv1.Role_ROLE_READER)
	everyone := append(connectBothSubscribed(t, s, nil, nil, application.Name),
		connectBothSubscribed(t, s, &member.Name, &member.Key, application.Name)...)
	s.SetMember(t, application.Name, member.Name, adminv1.Role_ROLE_READER)
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: application.Name, User: member.Name})
		return err
	})
	// The change has arrived when a right that it took away is gone.
	connectEventually(t, func() error {
		client, _ := connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, &member.Name, &member.Key), connectAccepted)
		defer client.Close()
		ack, err := client.Exchange(rawmqtt.Publish{Topic: "command/" + application.Name + "/dev/go", QoS: 1, PacketID: 1}, rawmqtt.PUBACK, connectPatience)
		if err == nil && ack.Code != 0x87 {
			err = fmt.Errorf("%v, want 0x87", ack)
		}
		return err
	})
	connectAllAlive(t, everyone...)

	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: application.Name, Anonymous: true})
		return err
	})
	deadline := time.Now().Add(revocationLimit)
	for _, client := range everyone {
		connectEnded(t, client, max(time.Until(deadline), time.Millisecond), 0x87, "not authorized to read "+application.Name+" any more")
	}
}

// The right to send commands ends as fast, without ending the connection in MQTT 5.
func TestConnectRemovedMemberSendsNoCommands(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	member := s.CreateUser(t)
	application := s.CreateApplication(t, 1)
	s.SetMember(t, application.Name, member.Name, adminv1.Role_ROLE_PUBLISHER)
	clients := connectBoth(t, s, &member.Name, &member.Key)
	publish := rawmqtt.Publish{Topic: "command/" + application.Name + "/dev/go", QoS: 1, PacketID: 7}
	for _, client := range clients {
		if p, err := client.Exchange(publish, rawmqtt.PUBACK, connectPatience); err != nil || p.Code != 0 {
			t.Fatalf("%v, %v, want PUBACK 0", p, err)
		}
	}
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: application.Name, User: member.Name})
		return err
	})
	deadline := time.Now().Add(revocationLimit)
	var accepted time.Time // when the last command after the removal was accepted
	for _, client := range clients {
		for {
			p, err := client.Exchange(publish, rawmqtt.PUBACK, connectPatience)
			if client.Version() == rawmqtt.V311 && connectIsClosed(errors.Unwrap(err)) {
				break // not acknowledged
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Code == 0x87 {
				connectPing(t, client)
				break
			}
			if p.Code != 0 {
				t.Fatalf("%v, want 0 or 0x87", p)
			}
			if accepted = time.Now(); accepted.After(deadline) {
				t.Fatalf("a command was accepted %v after the deadline", accepted.Sub(deadline))
			}
		}
	}
}

func TestConnectDisabledUserIsDisconnected(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user, other := s.CreateUser(t), s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	token := s.Token(t, user, nil)
	doomed := append(connectBoth(t, s, &user.Name, &user.Key), connectBothSubscribed(t, s, &token, nil, application.Name)...)
	spared := connectBoth(t, s, &other.Name, &other.Key)
	connectDisable(t, s, user.Name, true)
	deadline := time.Now().Add(revocationLimit)
	for _, client := range doomed {
		connectEnded(t, client, max(time.Until(deadline), time.Millisecond), 0x87, "the user is disabled")
	}
	connectAllAlive(t, spared...)
}

func TestConnectDeletedApplicationEndsItsSubscriptions(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	doomed := connectBothSubscribed(t, s, &owner.Name, &owner.Key, application.Name)
	spared := connectBoth(t, s, &owner.Name, &owner.Key)
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.DeleteApplication(ctx, &adminv1.DeleteApplicationRequest{Name: application.Name})
		return err
	})
	deadline := time.Now().Add(revocationLimit)
	for _, client := range doomed {
		connectEnded(t, client, max(time.Until(deadline), time.Millisecond), 0x87, "not authorized to read "+application.Name+" any more")
	}
	connectAllAlive(t, spared...)
}

// A connection ends with the token that it was made with, not before, and one with
// an API key that ends as well.
func TestConnectEndsWithItsCredential(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	end := time.Now().Add(5 * time.Second).Truncate(time.Second)
	token := s.Token(t, user, map[string]any{"exp": end.Unix()})
	var key string
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		made, err := admin.CreateApiKey(ctx, &adminv1.CreateApiKeyRequest{User: user.Name, ExpireTime: timestamppb.New(end)})
		key = made.GetKey()
		return err
	})
	doomed := append(connectBoth(t, s, &token, nil), connectBothSubscribed(t, s, &token, nil, application.Name)...)
	keyed := connectBoth(t, s, &user.Name, &key)
	spared := connectBoth(t, s, &user.Name, &user.Key)
	if time.Now().After(end) {
		t.Skip("this machine is too slow: the token has expired before it was used")
	}
	for _, client := range append(doomed, keyed...) {
		if p, err := client.Read(time.Until(end) - 50*time.Millisecond); !errors.Is(err, rawmqtt.ErrTimeout) {
			t.Fatalf("%v, %v before the end of the credential", p, err)
		}
	}
	for _, client := range doomed {
		connectEnded(t, client, max(time.Until(end.Add(revocationLimit)), time.Millisecond), 0x87, "access token expired")
	}
	for _, client := range keyed {
		connectEnded(t, client, max(time.Until(end.Add(revocationLimit)), time.Millisecond), 0x87, "API key expired")
	}
	connectAllAlive(t, spared...)
}

// Rights end in time although the frontend has lost its connection to authorization
// for a while in between.
func TestConnectRevocationDuringAnOutageOfAuthorization(t *testing.T) {
	t.Parallel()
	s, relay := connectRelayed(t, nil)
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	doomed := connectBothSubscribed(t, s, &user.Name, &user.Key, application.Name)
	spared := connectBoth(t, s, nil, nil)
	relay.Cut()
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RevokeApiKey(ctx, &adminv1.RevokeApiKeyRequest{Id: user.KeyID})
		return err
	})
	// Nobody has told the frontend, and a decision outlives the loss of the watch.
	connectAllAlive(t, append(doomed, spared...)...)
	relay.Restore()
	for _, client := range doomed {
		connectEnded(t, client, 5*time.Second, 0x87, "the credential was revoked")
	}
	connectAllAlive(t, spared...)
}

// Without authorization, live connections go on for the lifetime of the decisions
// that let them in, and then end with a code that says what is wrong.
func TestConnectDecisionsEndInAnOutage(t *testing.T) {
	t.Parallel()
	s, relay := connectRelayed(t, func(cfg *standalone.Config) { cfg.Authorization.DecisionLifetime = 3 * time.Second })
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	clients := connectBothSubscribed(t, s, &user.Name, &user.Key, application.Name)
	publish := rawmqtt.Publish{Topic: "command/" + application.Name + "/dev/go", QoS: 1, PacketID: 7}
	for _, client := range clients {
		if p, err := client.Exchange(publish, rawmqtt.PUBACK, connectPatience); err != nil || p.Code != 0 {
			t.Fatalf("%v, %v, want PUBACK 0", p, err)
		}
	}
	relay.Cut()
	began := time.Now()
	// What was decided holds for a while, for events and for commands.
	for _, client := range clients {
		if p, err := client.Exchange(publish, rawmqtt.PUBACK, connectPatience); err != nil || p.Code != 0 {
			t.Errorf("%v, %v, want PUBACK 0 by the decision that is known", p, err)
		}
	}
	testkit.Produce(t, s.Brokers, application.Topic, testkit.Record{Value: []byte("event")})
	for _, client := range clients {
		if p, err := client.Expect(rawmqtt.PUBLISH, connectPatience); err != nil || p.Topic != "app/"+application.Name {
			t.Errorf("%v, %v, want the event", p, err)
		}
	}
	// The watch counts as unheard after 5 s, and for 5 s more it is tried to reach
	// authorization; the rest is for a slow machine.
	for _, client := range clients {
		connectEnded(t, client, 14*time.Second, 0x83, "authorization cannot be reached")
	}
	if took := time.Since(began); took < 2*time.Second || took > 14*time.Second {
		t.Errorf("connections ended after %v, want the lifetime of decisions of 3 s less a heartbeat at least, and not much more", took)
	}
}
