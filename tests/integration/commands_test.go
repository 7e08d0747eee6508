//go:build integration

package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/oracle"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// command publishes and returns the acknowledgement.
func (c *client) command(p rawmqtt.Publish) rawmqtt.Packet {
	c.t.Helper()
	if p.QoS > 0 && p.PacketID == 0 {
		p.PacketID = c.nextID()
	}
	puback := c.exchange(p, rawmqtt.PUBACK)
	if puback.PacketID != p.PacketID {
		c.t.Fatalf("client %s: PUBACK for packet %d, want %d", c.id, puback.PacketID, p.PacketID)
	}
	return puback
}

var (
	uuidV7       = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	microseconds = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
)

// TestCommandRecord compares the record of a command, header by header and byte
// by byte, with what is promised.
func TestCommandRecord(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Configure: func(c *standalone.Config) {
		c.CommandIngress.Commands.Instance = "golden"
	}})
	owner := s.CreateUser(t)
	// One name that has to be escaped, and one that has not: in the place of a
	// host, Go's url.Parse, and so the CloudEvents SDK, refuses an escape of
	// ASCII, which RFC 3986 allows.
	plain := s.CreateNamedApplication(t, owner, strings.ReplaceAll(testkit.UniqueName(t), "-", ""), 0)
	special := s.CreateNamedApplication(t, owner, "Ä. (b)~"+testkit.UniqueName(t), 0)
	for _, app := range []system.Application{plain, special} {
		s.SetMember(t, app.Name, "", adminv1.Role_ROLE_PUBLISHER) // Everyone, also anonymous.
	}

	key, token, anonymous := owner, owner, system.User{}
	token.Name, token.Key = s.Token(t, owner, nil), ""

	const octets, jsonType = "application/octet-stream", "application/json"
	expiry := rawmqtt.Number(rawmqtt.MessageExpiryInterval, 90)
	contentType := func(v string) rawmqtt.Property { return rawmqtt.Text(rawmqtt.ContentType, v) }
	manyBytes := bytes.Repeat([]byte{0, 1, 0xFE, 0xFF, '\n'}, 50_000)

	tests := []struct {
		name       string
		payload    string
		properties rawmqtt.Properties
		// user is key unless set.
		user *system.User
		// wantType is the datacontenttype of MQTT 5; that of 3.1.1 follows from
		// the payload.
		wantType, wantType311 string
		// more are the headers beyond the usual ones, in their order, in MQTT 5.
		more []string
	}{
		{name: "JSON", payload: `{"on": true}`, wantType: jsonType},
		{name: "JSON scalar", payload: `1.50`, wantType: jsonType},
		{name: "JSON with space around", payload: " \t[1, 2]\r\n", wantType: jsonType},
		{name: "text", payload: `on`, wantType: octets},
		{name: "cut JSON", payload: `{"on": `, wantType: octets},
		{name: "JSON that is not UTF-8", payload: "\"\xff\"", wantType: octets},
		{name: "bytes", payload: "\x00\x01\xff", wantType: octets},
		{name: "many bytes", payload: string(manyBytes), wantType: octets},
		{name: "nothing", payload: "", wantType: octets},
		{
			name: "content type", payload: "<on/>", properties: rawmqtt.Properties{contentType("Text/XML; charset=utf-8")},
			wantType: "Text/XML; charset=utf-8", wantType311: octets,
		},
		{
			name: "content type of other content", payload: `{"on":true}`, properties: rawmqtt.Properties{contentType("text/plain")},
			wantType: "text/plain", wantType311: jsonType,
		},
		{
			name: "payload format indicator", payload: `{"ü":1}`,
			properties: rawmqtt.Properties{rawmqtt.Number(rawmqtt.PayloadFormatIndicator, 1)}, wantType: jsonType,
		},
		{
			name: "everything", payload: `{}`,
			properties: rawmqtt.Properties{
				expiry, rawmqtt.Text(rawmqtt.ResponseTopic, "answers/to/me"),
				rawmqtt.Text(rawmqtt.CorrelationData, "\x00\xff\x01"),
				rawmqtt.User("b", "2"), rawmqtt.User("a", "ü"), rawmqtt.User("b", ""), rawmqtt.User("", "no name"),
				rawmqtt.User("ce_id", "mine"), rawmqtt.User("content-type", "x/y"),
				rawmqtt.User("baggage", "k=v"),
			},
			wantType: jsonType,
			more: []string{
				"ce_expirytime", "", "mqtt_response_topic", "answers/to/me", "mqtt_correlation_data", "\x00\xff\x01",
				"mqtt_user_b", "2", "mqtt_user_a", "ü", "mqtt_user_b", "", "mqtt_user_", "no name",
				"mqtt_user_ce_id", "mine", "mqtt_user_content-type", "x/y",
			},
		},
		{
			name: "empty correlation data", payload: `{}`,
			properties: rawmqtt.Properties{rawmqtt.Text(rawmqtt.CorrelationData, "")},
			wantType:   jsonType, more: []string{"mqtt_correlation_data", ""},
		},
		{name: "token", payload: `{}`, user: &token, wantType: jsonType},
		{name: "anonymous", payload: `{}`, user: &anonymous, wantType: jsonType},
	}
	type sent struct {
		name, device string
		want         golden
	}
	var all []sent
	for _, tt := range tests {
		for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
			for n, app := range []system.Application{plain, special, plain, special} {
				qos := byte(n / 2)
				user := &key
				if tt.user != nil {
					user = tt.user
				}
				c := connect(t, s, dial{version: version, user: *user})
				// What has to be escaped, and what not.
				device, command := "Pümp-7.a b~"+testkit.UniqueName(t), "set LED: ü"
				escaped := escape(app.Name) + "/" + escape(device)
				headers := []string{
					"ce_specversion", "1.0", "ce_source", "drogue://" + escaped, "ce_type", "io.drogue.event.v1",
					"ce_subject", command, "ce_application", app.Name, "ce_device", device, "ce_sender", device,
					"ce_partitionkey", escaped, "ce_instance", "golden",
				}
				switch user {
				case &key:
					headers = append(headers, "ce_authtype", "api_key", "ce_authid", owner.Issuer+"/"+owner.Subject)
				case &token:
					headers = append(headers, "ce_authtype", "user", "ce_authid", owner.Issuer+"/"+owner.Subject)
				default:
					headers = append(headers, "ce_authtype", "unauthenticated")
				}
				wantType := tt.wantType
				if version == rawmqtt.V5 {
					headers = append(headers, tt.more...)
				} else if tt.wantType311 != "" {
					wantType = tt.wantType311
				}
				want := golden{
					key: escaped, value: tt.payload, headers: append(headers, "content-type", wantType),
					before: time.Now().Add(-time.Microsecond), expiry: 90 * time.Second,
				}
				p := rawmqtt.Publish{
					Topic: "command/" + app.Name + "/" + device + "/" + command, Payload: []byte(tt.payload), QoS: qos,
					Properties: tt.properties,
				}
				if qos == 0 {
					c.send(p, rawmqtt.Disconnect{})
				} else if puback := c.command(p); puback.Code != 0 {
					t.Fatalf("%s: got %v", tt.name, puback)
				}
				want.after = time.Now()
				all = append(all, sent{fmt.Sprintf("%s, MQTT %s, QoS %d, %d", tt.name, version, qos, n%2), device, want})
			}
		}
	}

	records := map[string][]testkit.Record{}
	eventually(t, func() error { // Those with QoS 0 take their time.
		clear(records)
		for _, r := range testkit.ReadAll(t, s.Brokers, s.CommandsTopic) {
			device, _ := r.Header("ce_device")
			records[device] = append(records[device], r)
		}
		if len(records) < len(all) {
			return fmt.Errorf("%d records, want %d", len(records), len(all))
		}
		return nil
	})
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			if found := records[c.device]; len(found) != 1 {
				t.Fatalf("%d records, want one", len(found))
			}
			if strings.Contains(c.name, "QoS 0") {
				c.want.after = time.Now()
			}
			checkCommand(t, records[c.device][0], c.want)
		})
	}
}

// escape is the percent-encoding of names, written anew.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// golden is what a record has to be.
type golden struct {
	key, value string
	// headers are names and values in turn, without ce_id and ce_time. The order
	// counts for those that begin with mqtt_.
	headers       []string
	before, after time.Time
	expiry        time.Duration
}

func checkCommand(t *testing.T, r testkit.Record, want golden) {
	t.Helper()
	if r.Value == nil || string(r.Value) != want.value {
		t.Errorf("value %q (null: %v), want %q", r.Value, r.Value == nil, want.value)
	}
	if string(r.Key) != want.key {
		t.Errorf("key %q, want %q", r.Key, want.key)
	}
	if p := librdkafkaPartition(want.key, system.CommandsPartitions); r.Partition != p {
		t.Errorf("partition %d, want %d", r.Partition, p)
	}

	type header struct{ Name, Value string }
	split := func(all []header) (attributes map[string]string, others []header) {
		attributes = map[string]string{}
		for _, h := range all {
			if strings.HasPrefix(h.Name, "mqtt_") {
				others = append(others, h)
				continue
			}
			if _, ok := attributes[h.Name]; ok {
				t.Errorf("header %q comes twice", h.Name)
			}
			attributes[h.Name] = h.Value
		}
		return attributes, others
	}
	var got, expected []header
	for _, h := range r.Headers {
		got = append(got, header{h.Name, string(h.Value)})
	}
	for i := 0; i < len(want.headers); i += 2 {
		expected = append(expected, header{want.headers[i], want.headers[i+1]})
	}
	gotAttributes, gotOthers := split(got)
	wantAttributes, wantOthers := split(expected)

	if id := gotAttributes["ce_id"]; !uuidV7.MatchString(id) {
		t.Errorf("id %q is no UUIDv7", id)
	}
	text := gotAttributes["ce_time"]
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || !microseconds.MatchString(text) || at.Before(want.before) || at.After(want.after) {
		t.Errorf("time %q (%v), want one from %v to %v, UTC with microseconds", text, err, want.before.UTC(), want.after.UTC())
	}
	if _, ok := wantAttributes["ce_expirytime"]; ok {
		wantAttributes["ce_expirytime"] = at.Add(want.expiry).Format("2006-01-02T15:04:05.000000Z")
	}
	delete(gotAttributes, "ce_id")
	delete(gotAttributes, "ce_time")
	if diff := cmp.Diff(wantAttributes, gotAttributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantOthers, gotOthers); diff != "" {
		t.Errorf("other headers (-want +got):\n%s", diff)
	}

	// And it is a CloudEvent to those who read it.
	if host, _, _ := strings.Cut(want.key, "/"); strings.Contains(host, "%") {
		return
	}
	e, err := oracle.FromKafka(r)
	if err != nil {
		t.Fatalf("the SDK does not read the record: %v", err)
	}
	if e.ID() == "" || e.Type() != "io.drogue.event.v1" || !e.Time().Equal(at) || string(e.Data()) != want.value {
		t.Errorf("the SDK reads %v", e)
	}
}

// librdkafkaPartition is librdkafka's consistent_random for a key that is not
// empty: CRC-32 as zlib has it, bit by bit, modulo the number of partitions.
func librdkafkaPartition(key string, partitions uint32) int32 {
	crc := ^uint32(0)
	for _, b := range []byte(key) {
		crc ^= uint32(b)
		for range 8 {
			if crc&1 == 1 {
				crc = crc>>1 ^ 0xEDB88320
			} else {
				crc >>= 1
			}
		}
	}
	return int32(^crc % partitions)
}

func TestPartitionOfACommand(t *testing.T) {
	t.Parallel()
	// Check values of CRC-32/ISO-HDLC and of zlib's crc32(), modulo 8.
	for key, want := range map[string]int32{
		"123456789": 0xCBF43926 % 8, "app%201/pump%2D7": 4041363988 % 8, "foo/bar": 3861188962 % 8, "f%C3%B6%2Eo/bar%25": 2065960359 % 8,
	} {
		if got := librdkafkaPartition(key, 8); got != want {
			t.Fatalf("the test is wrong: partition of %q is %d, want %d", key, got, want)
		}
	}
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, 0)
	c := connect(t, s, dial{user: app.Owner})
	used := map[int32]bool{}
	const devices = 60
	for n := range devices {
		topic := fmt.Sprintf("command/%s/device-%d/on", app.Name, n)
		if puback := c.command(rawmqtt.Publish{Topic: topic, QoS: 1}); puback.Code != 0 {
			t.Fatalf("got %v", puback)
		}
	}
	for _, r := range testkit.ReadAll(t, s.Brokers, s.CommandsTopic) {
		used[r.Partition] = true
		if want := librdkafkaPartition(string(r.Key), system.CommandsPartitions); r.Partition != want {
			t.Errorf("key %q is in partition %d, want %d", r.Key, r.Partition, want)
		}
	}
	if len(used) < 2 {
		t.Errorf("the keys of %d devices are in the partitions %v", devices, used)
	}
}

func TestCommandsAreAcknowledgedInOrder(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, 0)
	for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
		t.Run("MQTT "+version.String(), func(t *testing.T) {
			t.Parallel()
			c := connect(t, s, dial{version: version, user: app.Owner})
			const n = 100 // Our Receive Maximum.
			packets := make([]rawmqtt.Outgoing, n)
			for i := range packets {
				packets[i] = rawmqtt.Publish{
					Topic:   fmt.Sprintf("command/%s/%s-%d/on", app.Name, c.id, i%7),
					Payload: fmt.Append(nil, i), QoS: 1, PacketID: uint16(1 + i),
				}
			}
			c.send(packets...)
			for i := range packets {
				if p, err := c.Expect(rawmqtt.PUBACK, patience); err != nil || p.Code != 0 || p.PacketID != uint16(1+i) {
					t.Fatalf("got %v, %v, want PUBACK %d", p, err, 1+i)
				}
			}
			// The commands of one device keep their order.
			next := map[string]int{}
			for _, r := range testkit.ReadAll(t, s.Brokers, s.CommandsTopic) {
				device, _ := r.Header("ce_device")
				rest, ok := strings.CutPrefix(device, c.id+"-")
				if !ok {
					continue
				}
				i, ok := next[rest]
				if !ok {
					i = int(rest[0] - '0')
				}
				if string(r.Value) != strconv.Itoa(i) {
					t.Errorf("device %s got %s, want %d", device, r.Value, i)
				}
				next[rest] = i + 7
			}
		})
	}
}

// startCommandOutage starts a system whose command-ingress reaches Kafka through
// a proxy, and gives commands up early.
func startCommandOutage(t *testing.T) (*system.System, *testkit.Proxy) {
	t.Helper()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	s := system.Start(t, system.Options{Brokers: brokers, Configure: func(c *standalone.Config) {
		c.CommandIngress.Kafka.Brokers = proxy.Brokers()
		c.CommandIngress.Delivery.Timeout = 1500 * time.Millisecond
		c.CommandIngress.Delivery.CheckInterval = 500 * time.Millisecond
		c.MQTTFrontend.CommandIngress.Deadline = 2500 * time.Millisecond
	}})
	return s, proxy
}

func TestCommandIsAcknowledgedOnlyWhenKafkaHasIt(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	s := system.Start(t, system.Options{Brokers: brokers, Configure: func(c *standalone.Config) {
		c.CommandIngress.Kafka.Brokers = proxy.Brokers()
	}})
	app := s.CreateApplication(t, 0)
	count := func() (n int64) {
		for _, end := range testkit.EndOffsets(t, brokers, s.CommandsTopic) {
			n += end
		}
		return n
	}
	written := int64(0)
	for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
		// One after the other: they count the records of one topic.
		t.Run("MQTT "+version.String(), func(t *testing.T) {
			c := connect(t, s, dial{version: version, user: app.Owner})
			publish := rawmqtt.Publish{Topic: "command/" + app.Name + "/device/on", Payload: []byte("1"), QoS: 1}
			for range 20 {
				if puback := c.command(publish); puback.Code != 0 {
					t.Fatalf("got %v", puback)
				}
				if written++; count() != written {
					t.Fatalf("%d records at PUBACK %d", count(), written)
				}
			}

			// Kafka hangs: nothing is acknowledged, and the record is not there.
			proxy.Stall()
			publish.PacketID = c.nextID()
			c.send(publish)
			c.silent()
			if count() != written {
				t.Errorf("%d records while Kafka hangs, want %d", count(), written)
			}
			proxy.Restore()
			if p, err := c.Expect(rawmqtt.PUBACK, patience); err != nil || p.Code != 0 || p.PacketID != publish.PacketID {
				t.Fatalf("got %v, %v, want PUBACK", p, err)
			}
			if written++; count() != written {
				t.Errorf("%d records, want %d", count(), written)
			}

			// Kafka has it and does not say so: neither do we.
			proxy.StallResponses()
			publish.PacketID = c.nextID()
			c.send(publish)
			written++
			eventually(t, func() error {
				if n := count(); n != written {
					return fmt.Errorf("%d records, want %d", n, written)
				}
				return nil
			})
			c.silent()
			proxy.Restore()
			if p, err := c.Expect(rawmqtt.PUBACK, patience); err != nil || p.Code != 0 || p.PacketID != publish.PacketID {
				t.Fatalf("got %v, %v, want PUBACK", p, err)
			}
			if count() != written {
				t.Errorf("%d records, want %d: it was written twice", count(), written)
			}
		})
	}
}

func TestCommandIsRefusedWithoutKafka(t *testing.T) {
	t.Parallel()
	s, proxy := startCommandOutage(t)
	app := s.CreateApplication(t, 0)
	ids := func() map[string]int {
		seen := map[string]int{}
		for _, r := range testkit.ReadAll(t, s.Brokers, s.CommandsTopic) {
			seen[string(r.Value)]++
		}
		return seen
	}
	topic := "command/" + app.Name + "/device/on"
	works := func(t *testing.T, version rawmqtt.Version, payload string) *client {
		t.Helper()
		c := connect(t, s, dial{version: version, user: app.Owner})
		if p := c.command(rawmqtt.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)}); p.Code != 0 {
			t.Fatalf("got %v", p)
		}
		return c
	}
	for _, outage := range []struct {
		name string
		cut  func()
		// unknown says that Kafka may get what was on its way, so that what is
		// sent again may be there twice.
		unknown bool
	}{
		{"connections break", proxy.Cut, false},
		{"Kafka hangs", proxy.Stall, true},
	} {
		t.Run(outage.name, func(t *testing.T) {
			v5 := works(t, rawmqtt.V5, outage.name+": 5 before")
			v311 := works(t, rawmqtt.V311, outage.name+": 3.1.1 before")
			bystander := works(t, rawmqtt.V311, outage.name+": bystander before")
			outage.cut()

			sent := rawmqtt.Publish{Topic: topic, QoS: 1, PacketID: 1000, Payload: []byte(outage.name + ": 3.1.1 again")}
			v311.send(sent)
			puback := v5.command(rawmqtt.Publish{Topic: topic, QoS: 1, Payload: []byte(outage.name + ": 5 refused")})
			reason, _ := puback.Properties.Text(rawmqtt.ReasonString)
			if puback.Code != 0x83 || reason == "" {
				t.Errorf("got %v, want PUBACK 0x83 with a reason", puback)
			}
			if p, err := v311.Read(patience); !isClosed(err) {
				t.Errorf("MQTT 3.1.1 got %v, %v, want the connection closed without an acknowledgement", p, err)
			}
			// Who sent nothing stays.
			v5.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
			bystander.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
			for payload := range ids() {
				if strings.HasSuffix(payload, "refused") || strings.HasSuffix(payload, outage.name+": 3.1.1 again") {
					t.Errorf("%q is in Kafka", payload)
				}
			}
			proxy.Restore()

			// It works again by itself, on the same connection and on a new one.
			attempts := 0
			eventually(t, func() error {
				attempts++
				p := v5.command(rawmqtt.Publish{Topic: topic, QoS: 1, Payload: fmt.Appendf(nil, "%s: attempt %d", outage.name, attempts)})
				if p.Code != 0 {
					return fmt.Errorf("got %v", p)
				}
				return nil
			})
			again := connect(t, s, dial{version: rawmqtt.V311, user: app.Owner, id: v311.id})
			sent.Dup = true
			again.command(sent)
			bystander.command(rawmqtt.Publish{Topic: topic, QoS: 1, Payload: []byte(outage.name + ": bystander after")})
			seen := ids()
			for _, payload := range []string{
				outage.name + ": 3.1.1 again", outage.name + ": bystander after", fmt.Sprintf("%s: attempt %d", outage.name, attempts),
			} {
				if n := seen[payload]; n != 1 && (n != 2 || !outage.unknown || !strings.HasSuffix(payload, "again")) {
					t.Errorf("%q is %d times in Kafka, want once", payload, n)
				}
			}
		})
	}
}

// While Kafka is away, a command with QoS 0 is lost, as MQTT has it, and nobody
// is disconnected.
func TestCommandWithQoS0IsNotWorthAConnection(t *testing.T) {
	t.Parallel()
	s, proxy := startCommandOutage(t)
	app := s.CreateApplication(t, 0)
	for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
		t.Run("MQTT "+version.String(), func(t *testing.T) {
			c := connect(t, s, dial{version: version, user: app.Owner})
			proxy.Cut()
			defer proxy.Restore()
			c.send(rawmqtt.Publish{Topic: "command/" + app.Name + "/device/on"})
			if p, err := c.Read(3 * time.Second); !errors.Is(err, rawmqtt.ErrTimeout) {
				t.Errorf("got %v, %v, want nothing", p, err)
			}
			c.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
		})
	}
}
