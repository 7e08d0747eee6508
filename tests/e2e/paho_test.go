//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/tests/internal/system"
)

// paho3Options are those of a Paho client for MQTT 3.1.1. An empty user is anonymous.
func paho3Options(t *testing.T, address, user, password string) *mqtt.ClientOptions {
	t.Helper()
	return mqtt.NewClientOptions().AddBroker("tcp://" + address).SetClientID(testkit.UniqueName(t)).SetProtocolVersion(4).
		SetUsername(user).SetPassword(password).SetAutoReconnect(false).SetConnectTimeout(patience).SetOrderMatters(true)
}

func connectPaho3(t *testing.T, options *mqtt.ClientOptions) mqtt.Client {
	t.Helper()
	client := mqtt.NewClient(options)
	if err := waitPaho3(t, client.Connect()); err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { client.Disconnect(100) })
	return client
}

func waitPaho3(t *testing.T, token mqtt.Token) error {
	t.Helper()
	if !token.WaitTimeout(patience) {
		t.Fatalf("%T: no answer within %v", token, patience)
	}
	return token.Error()
}

// receive returns the next of what a client has received.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case received := <-from:
		return received
	case <-time.After(patience):
		t.Fatalf("nothing received within %v", patience)
	}
	panic("unreachable")
}

// connectPaho5 connects a Paho client for MQTT 5.
func connectPaho5(t *testing.T, address string, cfg paho.ClientConfig, user, password string) *paho.Client {
	t.Helper()
	client, connack, err := tryPaho5(t, address, cfg, user, password)
	if err != nil {
		t.Fatalf("connect: %v, %+v", err, connack)
	}
	return client
}

func tryPaho5(t *testing.T, address string, cfg paho.ClientConfig, user, password string) (*paho.Client, *paho.Connack, error) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	cfg.Conn = conn
	if cfg.PacketTimeout == 0 {
		cfg.PacketTimeout = patience
	}
	client := paho.NewClient(cfg)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	connack, err := client.Connect(ctx, connectPacket5(t, user, password))
	t.Cleanup(func() {
		_ = client.Disconnect(&paho.Disconnect{})
		_ = conn.Close()
		if err == nil {
			<-client.Done()
		}
	})
	return client, connack, err
}

func connectPacket5(t *testing.T, user, password string) *paho.Connect {
	t.Helper()
	return &paho.Connect{
		ClientID: testkit.UniqueName(t), CleanStart: true, KeepAlive: 30,
		Username: user, UsernameFlag: user != "", Password: []byte(password), PasswordFlag: password != "",
		// The zero value asks the server for no reason strings.
		Properties: &paho.ConnectProperties{RequestProblemInfo: true},
	}
}

func toChannel(packets chan<- *paho.Publish) []func(paho.PublishReceived) (bool, error) {
	return []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
		packets <- p.Packet
		return true, nil
	}}
}

func userProperties(p *paho.Publish) map[string]string {
	properties := map[string]string{}
	for _, u := range p.Properties.User {
		properties[u.Key] = u.Value
	}
	return properties
}

func TestPaho3ReceivesEvents(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	token := s.Token(t, owner, nil)
	var records []testkit.Record
	for _, sample := range samples() {
		records = append(records, sample.record)
	}
	type subscriber struct {
		name   string
		qos    byte
		events chan mqtt.Message
	}
	var subscribers []subscriber
	for _, by := range []struct{ name, user, password string }{{"API key", owner.Name, owner.Key}, {"token", token, ""}} {
		for qos := range byte(2) {
			events := make(chan mqtt.Message, 2*len(records))
			client := connectPaho3(t, paho3Options(t, s.MQTT(), by.user, by.password))
			if err := waitPaho3(t, client.Subscribe("app/"+application.Name, qos, func(_ mqtt.Client, m mqtt.Message) { events <- m })); err != nil {
				t.Fatal(err)
			}
			subscribers = append(subscribers, subscriber{fmt.Sprintf("%s, QoS %d", by.name, qos), qos, events})
		}
	}
	testkit.Produce(t, s.Brokers, application.Topic, records...)
	for _, subscriber := range subscribers {
		t.Run(subscriber.name, func(t *testing.T) {
			for _, sample := range samples() {
				m := receive(t, subscriber.events)
				if m.Qos() != subscriber.qos || m.Retained() || m.Duplicate() || m.Topic() != "app/"+application.Name {
					t.Errorf("%s: QoS %d, retain %v, duplicate %v, topic %s", sample.name, m.Qos(), m.Retained(), m.Duplicate(), m.Topic())
				}
				if diff := cmp.Diff(ofRecord(t, sample.record), ofStructured(t, sample, m.Payload())); diff != "" {
					t.Errorf("%s (-Kafka +MQTT, both by the SDK):\n%s", sample.name, diff)
				}
			}
		})
	}
}

func TestPaho5ReceivesEvents(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	// A record that is no CloudEvent comes last.
	var records []testkit.Record
	for _, sample := range samples() {
		records = append(records, sample.record)
	}
	records = append(records, testkit.Record{Value: []byte("no \xff event")})
	type subscriber struct {
		mode   string
		qos    byte
		events chan *paho.Publish
	}
	var subscribers []subscriber
	for id, mode := range []string{"structured", "binary", ""} {
		for qos := range byte(2) {
			events := make(chan *paho.Publish, 2*len(records))
			client := connectPaho5(t, s.MQTT(), paho.ClientConfig{OnPublishReceived: toChannel(events)}, owner.Name, owner.Key)
			subscribe := &paho.Subscribe{
				Subscriptions: []paho.SubscribeOptions{{Topic: "app/" + application.Name, QoS: qos}},
				Properties:    &paho.SubscribeProperties{SubscriptionIdentifier: new(id + 100)},
			}
			if mode != "" {
				subscribe.Properties.User.Add("content-mode", mode)
			}
			suback, err := client.Subscribe(t.Context(), subscribe)
			if err != nil || suback.Reasons[0] != qos {
				t.Fatalf("subscribe: %v, %+v", err, suback)
			}
			subscribers = append(subscribers, subscriber{mode, qos, events})
		}
	}
	testkit.Produce(t, s.Brokers, application.Topic, records...)
	for i, subscriber := range subscribers {
		t.Run(fmt.Sprintf("mode %q, QoS %d", subscriber.mode, subscriber.qos), func(t *testing.T) {
			for _, sample := range samples() {
				p := receive(t, subscriber.events)
				if p.QoS != subscriber.qos || p.Retain || p.Duplicate() || p.Topic != "app/"+application.Name {
					t.Errorf("%s: QoS %d, retain %v, duplicate %v, topic %s", sample.name, p.QoS, p.Retain, p.Duplicate(), p.Topic)
				}
				if id := p.Properties.SubscriptionIdentifier; id == nil || *id != 100+i/2 {
					t.Errorf("%s: subscription identifier %v, want %d", sample.name, id, 100+i/2)
				}
				want := ofRecord(t, sample.record)
				var got facts
				if subscriber.mode == "binary" {
					got = ofBinary(t, p.Payload, p.Properties.ContentType, userProperties(p))
				} else {
					got = ofStructured(t, sample, p.Payload)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-Kafka +MQTT, both by the SDK):\n%s", sample.name, diff)
				}
			}
			p := receive(t, subscriber.events)
			var got facts
			if subscriber.mode == "binary" {
				got = ofBinary(t, p.Payload, p.Properties.ContentType, userProperties(p))
			} else {
				got = ofJSON(t, p.Payload)
			}
			want := facts{
				"specversion": "1.0", "id": fmt.Sprintf("%s/0/%d", application.Topic, len(records)-1), "source": "kafka:" + application.Topic,
				"type": "mqtt-integration.kafka.record.v1", "data": "no \xff event",
			}
			for name := range got {
				if _, ok := want[name]; !ok {
					delete(got, name) // what else is told about it is not the point here
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("a record that is no CloudEvent (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPaho3SendsCommands(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := readableApplication(t, s)
	owner, stranger := application.Owner, s.CreateUser(t)
	client := connectPaho3(t, paho3Options(t, s.MQTT(), owner.Name, owner.Key))
	const commands = 50
	var tokens []mqtt.Token
	for i := range commands {
		tokens = append(tokens, client.Publish("command/"+application.Name+"/dev/set", 1, false, fmt.Sprintf(`{"n":%d}`, i)))
	}
	for _, token := range tokens {
		if err := waitPaho3(t, token); err != nil {
			t.Fatal(err)
		}
	}
	records := testkit.ReadAll(t, s.Brokers, s.CommandsTopic)
	if len(records) != commands {
		t.Fatalf("%d commands in Kafka once all are acknowledged, want %d", len(records), commands)
	}
	for i, record := range records {
		if got := ofRecord(t, record); got["data"] != fmt.Sprintf(`{"n":%d}`, i) || got["device"] != "dev" {
			t.Errorf("command %d is %v: they are not in order", i, got)
		}
	}

	// 3.1.1 has no way to refuse a command but to close.
	lost := make(chan error, 1)
	options := paho3Options(t, s.MQTT(), stranger.Name, stranger.Key).SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
	refused := connectPaho3(t, options).Publish("command/"+application.Name+"/dev/set", 1, false, "{}")
	_ = receive(t, lost)
	if err := waitPaho3(t, refused); err == nil {
		t.Error("a refused command was acknowledged")
	}
	if records := testkit.ReadAll(t, s.Brokers, s.CommandsTopic); len(records) != commands {
		t.Errorf("%d commands in Kafka after a refused one, want %d", len(records), commands)
	}
}

func TestPaho5SendsCommands(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := readableApplication(t, s)
	owner := application.Owner
	client := connectPaho5(t, s.MQTT(), paho.ClientConfig{}, owner.Name, owner.Key)
	expiry := uint32(60)
	publish := &paho.Publish{Topic: "command/" + application.Name + "/dev ü/set", QoS: 1, Payload: []byte(`<on/>`), Properties: &paho.PublishProperties{
		ContentType: "application/xml", ResponseTopic: "answers", CorrelationData: []byte{0, 1, 0xff}, MessageExpiry: &expiry,
		User: paho.UserProperties{{Key: "a", Value: "1"}, {Key: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},
	}}
	began := time.Now()
	response, err := client.Publish(t.Context(), publish)
	if err != nil || response.ReasonCode != 0 {
		t.Fatalf("publish: %v, %+v", err, response)
	}
	records := testkit.ReadAll(t, s.Brokers, s.CommandsTopic)
	if len(records) != 1 {
		t.Fatalf("%d commands in Kafka, want one", len(records))
	}
	got := ofRecord(t, records[0])
	for name, want := range map[string]string{
		"datacontenttype": "application/xml", "data": "<on/>", "device": "dev ü", "partitionkey": partitionKey(application.Name, "dev ü"),
		"authtype": "api_key", "authid": owner.Issuer + "/" + owner.Subject,
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	at, err := time.Parse(time.RFC3339, got["expirytime"])
	if err != nil || at.Before(began.Add(55*time.Second)) || at.After(time.Now().Add(65*time.Second)) {
		t.Errorf("expirytime %q, %v, want a minute after the PUBLISH", got["expirytime"], err)
	}
	for name, want := range map[string]string{"mqtt_response_topic": "answers", "mqtt_correlation_data": "\x00\x01\xff", "mqtt_user_a": "1"} {
		if value, _ := records[0].Header(name); value != want {
			t.Errorf("header %s is %q, want %q", name, value, want)
		}
	}
	if value, ok := records[0].Header("mqtt_user_traceparent"); ok {
		t.Errorf("header mqtt_user_traceparent is %q: it is no property of the user", value)
	}
}

// Refusals have the reason codes of MQTT 5, and say in words what is wrong.
func TestPaho5IsRefused(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner, stranger := application.Owner, s.CreateUser(t)

	for _, tt := range []struct {
		name, user, password string
		code                 byte
		reason               string
	}{
		{"wrong key", owner.Name, stranger.Key, 0x86, "bad credentials"},
		{"no token", "nobody", "", 0x86, "bad credentials"},
		{"expired token", "", s.Token(t, owner, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), 0x86, "credentials have expired"},
	} {
		_, connack, err := tryPaho5(t, s.MQTT(), paho.ClientConfig{}, tt.user, tt.password)
		if err == nil || connack == nil || connack.ReasonCode != tt.code || connack.Properties.ReasonString != tt.reason {
			t.Errorf("%s: %v, %+v, want 0x%02x %q", tt.name, err, connack, tt.code, tt.reason)
		}
	}

	client := connectPaho5(t, s.MQTT(), paho.ClientConfig{}, stranger.Name, stranger.Key)
	for _, tt := range []struct {
		topic   string
		payload string
		format  byte
		code    byte
		reason  string
	}{
		{"command/" + application.Name + "/dev/set", "{}", 0, 0x87, "not authorized to send commands to " + application.Name},
		{"command/" + application.Name + "/dev", "{}", 0, 0x90, ""},
		{"command/" + application.Name + "//set", "{}", 0, 0x90, ""},
		{"app/" + application.Name, "{}", 0, 0x90, ""},
		{"command/" + application.Name + "/dev/set", "\xff", 1, 0x99, ""},
	} {
		response, err := client.Publish(t.Context(), &paho.Publish{
			Topic: tt.topic, QoS: 1, Payload: []byte(tt.payload), Properties: &paho.PublishProperties{PayloadFormat: &tt.format},
		})
		if err == nil || response == nil || response.ReasonCode != tt.code {
			t.Errorf("publish to %s: %v, %+v, want 0x%02x", tt.topic, err, response, tt.code)
			continue
		}
		if reason := response.Properties.ReasonString; reason == "" || (tt.reason != "" && reason != tt.reason) {
			t.Errorf("publish to %s: reason string %q, want %q", tt.topic, reason, tt.reason)
		}
	}
	for _, tt := range []struct {
		filter string
		mode   string
		code   byte
	}{
		{"app/" + application.Name, "structured", 0x87},
		{"app/" + testkit.UniqueName(t), "structured", 0x87},
		{"app/" + application.Name, "upside-down", 0x83},
		{"command/" + application.Name + "/dev/set", "structured", 0x8f},
		{"app/" + application.Name + "/dev", "structured", 0x8f},
	} {
		subscribe := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: tt.filter, QoS: 1}}, Properties: &paho.SubscribeProperties{}}
		subscribe.Properties.User.Add("content-mode", tt.mode)
		suback, err := client.Subscribe(t.Context(), subscribe)
		if err == nil || suback == nil || len(suback.Reasons) != 1 || suback.Reasons[0] != tt.code || suback.Properties.ReasonString == "" {
			t.Errorf("subscribe to %s in mode %s: %v, %+v, want 0x%02x with a reason string", tt.filter, tt.mode, err, suback, tt.code)
		}
	}
	if records := testkit.ReadAll(t, s.Brokers, s.CommandsTopic); len(records) > 0 {
		t.Errorf("%d refused commands are in Kafka", len(records))
	}
}

func TestPaho5Unsubscribes(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	events := make(chan *paho.Publish, 100)
	client := connectPaho5(t, s.MQTT(), paho.ClientConfig{OnPublishReceived: toChannel(events)}, application.Owner.Name, application.Owner.Key)
	filter := "app/" + application.Name
	for range 2 {
		if suback, err := client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}}); err != nil {
			t.Fatalf("subscribe: %v, %+v", err, suback)
		}
	}
	testkit.Produce(t, s.Brokers, application.Topic, binaryRecord("1", "state", "application/json", "{}"))
	if got := ofJSON(t, receive(t, events).Payload); got["id"] != "1" {
		t.Errorf("event %v, want the first", got)
	}
	for _, want := range []byte{0x00, 0x11} {
		unsuback, err := client.Unsubscribe(t.Context(), &paho.Unsubscribe{Topics: []string{filter}})
		if unsuback == nil || len(unsuback.Reasons) != 1 || unsuback.Reasons[0] != want {
			t.Errorf("unsubscribe: %v, %+v, want 0x%02x", err, unsuback, want)
		}
	}
	testkit.Produce(t, s.Brokers, application.Topic, binaryRecord("2", "state", "application/json", "{}"))
	// What comes first after the next SUBACK shows that nothing came in between.
	if _, err := client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	testkit.Produce(t, s.Brokers, application.Topic, binaryRecord("3", "state", "application/json", "{}"))
	if got := ofJSON(t, receive(t, events).Payload); got["id"] != "3" {
		t.Errorf("event %v, want the third: the second came while nobody was subscribed", got)
	}
}

// Clients that reconnect by themselves, as these libraries do, find everything as it
// was when they subscribe again.
func TestPahoReconnects(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	filter := "app/" + application.Name

	subscribe3 := func(t *testing.T, address string) (received <-chan []byte, subscribed <-chan error) {
		t.Helper()
		events, subscriptions := make(chan []byte, 100), make(chan error, 100)
		connectPaho3(t, paho3Options(t, address, owner.Name, owner.Key).SetAutoReconnect(true).SetMaxReconnectInterval(100*time.Millisecond).
			SetOnConnectHandler(func(c mqtt.Client) {
				token := c.Subscribe(filter, 1, func(_ mqtt.Client, m mqtt.Message) { events <- m.Payload() })
				token.WaitTimeout(patience)
				subscriptions <- token.Error()
			}))
		return events, subscriptions
	}
	subscribe5 := func(t *testing.T, address string) (received <-chan []byte, subscribed <-chan error) {
		t.Helper()
		events, subscriptions := make(chan []byte, 100), make(chan error, 100)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		manager, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
			ServerUrls: []*url.URL{{Scheme: "mqtt", Host: address}}, KeepAlive: 30, CleanStartOnInitialConnection: true,
			ConnectUsername: owner.Name, ConnectPassword: []byte(owner.Key),
			ReconnectBackoff: func(int) time.Duration { return 50 * time.Millisecond },
			OnConnectionUp: func(m *autopaho.ConnectionManager, _ *paho.Connack) {
				_, err := m.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
				subscriptions <- err
			},
			ClientConfig: paho.ClientConfig{
				ClientID: testkit.UniqueName(t),
				OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
					events <- p.Packet.Payload
					return true, nil
				}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { <-manager.Done() })
		t.Cleanup(cancel)
		return events, subscriptions
	}
	for name, subscribe := range map[string]func(*testing.T, string) (<-chan []byte, <-chan error){"3.1.1": subscribe3, "5": subscribe5} {
		t.Run(name, func(t *testing.T) {
			relay := system.NewRelay(t, s.MQTT())
			events, subscribed := subscribe(t, relay.Address())
			for round := range 3 {
				if err := receive(t, subscribed); err != nil {
					t.Fatalf("subscribe in round %d: %v", round, err)
				}
				id := fmt.Sprintf("%s-%d", name, round)
				testkit.Produce(t, s.Brokers, application.Topic, binaryRecord(id, "state", "application/json", "{}"))
				for {
					got := ofJSON(t, receive(t, events))["id"]
					if got == id {
						break
					}
					// The one before may come again: its acknowledgement was cut off.
					if !strings.HasPrefix(got, name) {
						t.Fatalf("event %q, want %q", got, id)
					}
				}
				relay.Cut()
				relay.Restore()
			}
		})
	}
}
