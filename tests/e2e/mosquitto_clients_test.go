//go:build e2e

package e2e_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/tests/internal/system"
)

// messageFormat makes mosquitto_sub print a message on one line, whatever is in it.
const messageFormat = "message|%q|%r|%t|%C|%F|%x|%P"

// message is what mosquitto_sub says about a message.
type message struct {
	qos, retain, topic, contentType, payloadFormat string
	payload                                        []byte
	properties                                     map[string]string
}

func (p *process) message(t *testing.T) message {
	t.Helper()
	line := p.line(t, "message", func(line string) bool { return strings.HasPrefix(line, "message|") })
	fields := strings.SplitN(line, "|", 8)
	payload, err := hex.DecodeString(fields[6])
	if err != nil {
		t.Fatalf("payload %q: %v", fields[6], err)
	}
	m := message{
		qos: fields[1], retain: fields[2], topic: fields[3], contentType: fields[4], payloadFormat: fields[5],
		payload: payload, properties: map[string]string{},
	}
	for property := range strings.FieldsSeq(fields[7]) {
		name, value, _ := strings.Cut(property, ":")
		m.properties[name] = value
	}
	return m
}

// What a subscriber receives is what the SDK finds in Kafka, for every version,
// quality of service and way to sign in.
func TestMosquittoSubscribes(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	s.SetMember(t, application.Name, "", adminv1.Role_ROLE_READER)
	token := s.Token(t, owner, nil)
	key := []string{"-u", owner.Name, "-P", owner.Key}
	binaryMode := []string{"-D", "subscribe", "user-property", "content-mode", "binary"}
	tests := []struct {
		name   string
		args   []string
		qos    string
		binary bool
	}{
		{"3.1.1, API key, QoS 0", append([]string{"-V", "311", "-q", "0"}, key...), "0", false},
		{"3.1.1, API key, QoS 1", append([]string{"-V", "311", "-q", "1"}, key...), "1", false},
		{"3.1.1, API key, QoS 2 asked for", append([]string{"-V", "311", "-q", "2"}, key...), "1", false},
		{"3.1.1, token as user name", []string{"-V", "311", "-q", "1", "-u", token}, "1", false},
		{"3.1.1, token as password, empty user name", []string{"-V", "311", "-q", "1", "-u", "", "-P", token}, "1", false},
		{"3.1.1, anonymous", []string{"-V", "311", "-q", "1"}, "1", false},
		{"3.1.1, client identifier", append([]string{"-V", "311", "-q", "1", "-i", testkit.UniqueName(t)}, key...), "1", false},
		{"3.1.1, clean session 0", append([]string{"-V", "311", "-q", "1", "-c", "-i", testkit.UniqueName(t)}, key...), "1", false},
		{"5, API key, QoS 0", append([]string{"-V", "5", "-q", "0"}, key...), "0", false},
		{"5, API key, QoS 1", append([]string{"-V", "5", "-q", "1"}, key...), "1", false},
		{"5, token as user name", []string{"-V", "5", "-q", "1", "-u", token}, "1", false},
		{"5, token as password", []string{"-V", "5", "-q", "1", "-P", token}, "1", false},
		{"5, anonymous", []string{"-V", "5", "-q", "1"}, "1", false},
		{"5, structured by name", append([]string{"-V", "5", "-q", "1", "-D", "subscribe", "user-property", "content-mode", "structured"}, key...), "1", false},
		{"5, binary, API key, QoS 0", append(append([]string{"-V", "5", "-q", "0"}, key...), binaryMode...), "0", true},
		{"5, binary, API key, QoS 1", append(append([]string{"-V", "5", "-q", "1"}, key...), binaryMode...), "1", true},
		{"5, binary, token as password", append([]string{"-V", "5", "-q", "1", "-P", token}, binaryMode...), "1", true},
		{"5, binary, anonymous", append([]string{"-V", "5", "-q", "1"}, binaryMode...), "1", true},
	}
	var subscribers []*process
	for _, tt := range tests {
		subscribers = append(subscribers, mosquittoSub(t, s.MQTT(), append(tt.args, "-t", "app/"+application.Name, "-F", messageFormat)...))
	}
	// One partition, one order.
	var records []testkit.Record
	for _, sample := range samples() {
		records = append(records, sample.record)
	}
	testkit.Produce(t, s.Brokers, application.Topic, records...)

	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, sample := range samples() {
				m := subscribers[i].message(t)
				if m.qos != tt.qos || m.retain != "0" || m.topic != "app/"+application.Name {
					t.Errorf("%s: QoS %s, retain %s, topic %s", sample.name, m.qos, m.retain, m.topic)
				}
				want := ofRecord(t, sample.record)
				var got facts
				switch {
				case tt.binary && sample.spaces:
					continue
				case tt.binary:
					got = ofBinary(t, m.payload, m.contentType, m.properties)
				default:
					got = ofStructured(t, sample, m.payload)
					if strings.HasPrefix(tt.name, "5") && (m.contentType != "application/cloudevents+json; charset=utf-8" || m.payloadFormat != "1") {
						t.Errorf("%s: content type %q, payload format indicator %q", sample.name, m.contentType, m.payloadFormat)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-Kafka +MQTT, both by the SDK):\n%s", sample.name, diff)
				}
			}
		})
	}
}

// readableApplication makes an application, without a topic, whose name the SDK can
// read in the attribute source of its commands. There it is percent-encoded but for
// letters and digits, and the SDK, by Go's net/url, reads few such escapes in the place
// of a host.
func readableApplication(t *testing.T, s *system.System) system.Application {
	t.Helper()
	owner := s.CreateUser(t)
	name := strings.ReplaceAll(testkit.UniqueName(t), "-", "")
	ctx, cancel := context.WithTimeout(s.AdministratorContext(t.Context()), patience)
	defer cancel()
	if _, err := s.Admin.CreateApplication(ctx, &adminv1.CreateApplicationRequest{Name: name, Owner: owner.Name}); err != nil {
		t.Fatal(err)
	}
	return system.Application{Name: name, Owner: owner}
}

// Commands arrive in Kafka before mosquitto_pub ends, as events that the SDK reads.
func TestMosquittoPublishes(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	s := system.Start(t, system.Options{})
	application := readableApplication(t, s)
	owner := application.Owner
	s.SetMember(t, application.Name, "", adminv1.Role_ROLE_PUBLISHER)
	token := s.Token(t, owner, nil)
	key := []string{"-u", owner.Name, "-P", owner.Key}
	tests := []struct {
		name string
		args []string
		want facts
		// headers are those that are not attributes of the event.
		headers map[string]string
	}{
		{
			"3.1.1, QoS 1, JSON", append([]string{"-V", "311", "-q", "1", "-m", `{"on": true}`}, key...),
			facts{"datacontenttype": "application/json", "data": `{"on": true}`, "authtype": "api_key"},
			nil,
		},
		{
			"3.1.1, QoS 0, no JSON", append([]string{"-V", "311", "-q", "0", "-m", `{"on":`}, key...),
			facts{"datacontenttype": "application/octet-stream", "data": `{"on":`},
			nil,
		},
		{
			"3.1.1, token as user name, number",
			[]string{"-V", "311", "-q", "1", "-u", token, "-m", "1.50"},
			facts{"datacontenttype": "application/json", "data": "1.50"},
			nil,
		},
		{
			"3.1.1, nothing", append([]string{"-V", "311", "-q", "1", "-n"}, key...),
			facts{"datacontenttype": "application/octet-stream", "data": ""},
			nil,
		},
		{
			"3.1.1, anonymous",
			[]string{"-V", "311", "-q", "1", "-m", "{}"},
			facts{"datacontenttype": "application/json", "data": "{}", "authtype": "unauthenticated"},
			nil,
		},
		{
			"3.1.1, RETAIN is ignored", append([]string{"-V", "311", "-q", "1", "-r", "-m", "{}"}, key...),
			facts{"datacontenttype": "application/json", "data": "{}"},
			nil,
		},
		{
			"5, QoS 0", append([]string{"-V", "5", "-q", "0", "-m", "{}"}, key...),
			facts{"datacontenttype": "application/json", "data": "{}"},
			nil,
		},
		{
			"5, token as password",
			[]string{"-V", "5", "-q", "1", "-P", token, "-m", "[]"},
			facts{"datacontenttype": "application/json", "data": "[]", "authtype": "user"},
			nil,
		},
		{
			"5, properties", append([]string{
				"-V", "5", "-q", "1", "-m", "an", "-D", "publish", "content-type", "text/plain", "-D", "publish", "payload-format-indicator", "1",
				"-D", "publish", "response-topic", "answers/1", "-D", "publish", "correlation-data", "c-1",
				"-D", "publish", "user-property", "priority", "high", "-D", "publish", "user-property", "Unit", "°C",
			}, key...),
			facts{"datacontenttype": "text/plain", "data": "an"},
			map[string]string{
				"mqtt_response_topic": "answers/1", "mqtt_correlation_data": "c-1", "mqtt_user_priority": "high", "mqtt_user_Unit": "°C",
			},
		},
		{
			"5, 100 kB", append([]string{"-V", "5", "-q", "1", "-m", strings.Repeat("x", 100_000)}, key...),
			facts{"datacontenttype": "application/octet-stream", "data": strings.Repeat("x", 100_000)},
			nil,
		},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			device := fmt.Sprint("device/", i)
			device = strings.ReplaceAll(device, "/", ".") // a character that is escaped
			began := time.Now().Truncate(time.Millisecond)
			mosquittoPub(t, s.MQTT(), append(tt.args, "-t", "command/"+application.Name+"/"+device+"/set")...)
			find := func() (record testkit.Record, found int) {
				for _, r := range testkit.ReadAll(t, s.Brokers, s.CommandsTopic) {
					if string(r.Key) == partitionKey(application.Name, device) {
						record, found = r, found+1
					}
				}
				return record, found
			}
			record, found := find()
			if strings.Contains(tt.name, "QoS 0") { // nobody has said that it is there
				eventually(t, "command", func() error {
					if record, found = find(); found == 0 {
						return errors.New("it is not in Kafka")
					}
					return nil
				})
			}
			if found != 1 {
				t.Fatalf("%d records in Kafka, want one", found)
			}
			got := ofRecord(t, record)
			at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", got["time"])
			if err != nil || at.Before(began) || at.After(time.Now()) {
				t.Errorf("time %q, %v, want that of the PUBLISH", got["time"], err)
			}
			if got["id"] == "" {
				t.Error("no id")
			}
			want := facts{
				"specversion": "1.0", "type": "io.drogue.event.v1", "subject": "set", "application": application.Name, "device": device,
				"sender": device, "instance": "drogue", "partitionkey": partitionKey(application.Name, device),
				"source": "drogue://" + partitionKey(application.Name, device),
			}
			maps.Copy(want, tt.want)
			delete(got, "id")
			delete(got, "time")
			switch want["authtype"] {
			case "user", "api_key":
				want["authid"] = owner.Issuer + "/" + owner.Subject
			case "unauthenticated":
				delete(got, "authid") // another one for each connection
			default:
				delete(got, "authtype")
				delete(got, "authid")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("command (-want +got):\n%s", diff)
			}
			headers := map[string]string{}
			for _, h := range record.Headers {
				if strings.HasPrefix(h.Name, "mqtt_") {
					headers[h.Name] = string(h.Value)
				}
			}
			if len(tt.headers) > 0 || len(headers) > 0 {
				if diff := cmp.Diff(tt.headers, headers); diff != "" {
					t.Errorf("headers (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// What is refused is refused in words that mosquitto's users see, and is not in
// Kafka.
func TestMosquittoIsRefused(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	owner, stranger := application.Owner, s.CreateUser(t)
	key := []string{"-u", owner.Name, "-P", owner.Key, "-q", "1"}
	strangers := []string{"-u", stranger.Name, "-P", stranger.Key, "-q", "1"}
	expired := s.Token(t, owner, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})
	set := "command/" + application.Name + "/dev/set"
	tests := []struct {
		name    string
		program string
		args    []string
		code    int
		says    []string
	}{
		{"3.1.1, wrong key", "mosquitto_pub", []string{"-V", "311", "-u", owner.Name, "-P", "wrong", "-t", set, "-n"}, 4, []string{"bad user name or password"}},
		{"3.1.1, expired token", "mosquitto_pub", []string{"-V", "311", "-u", expired, "-t", set, "-n"}, 4, []string{"bad user name or password"}},
		{"5, wrong key", "mosquitto_pub", []string{"-V", "5", "-u", owner.Name, "-P", "wrong", "-t", set, "-n"}, 0x86, []string{"Bad User Name or Password"}},
		{"5, expired token", "mosquitto_pub", []string{"-V", "5", "-P", expired, "-t", set, "-n"}, 0x86, []string{"Bad User Name or Password"}},
		{
			"5, command of a stranger", "mosquitto_pub", append([]string{"-V", "5", "-t", set, "-n"}, strangers...), 0,
			[]string{"Publish 1 failed: Not authorized", "not authorized to send commands to " + application.Name},
		},
		{"3.1.1, command of a stranger", "mosquitto_pub", append([]string{"-V", "311", "-t", set, "-n"}, strangers...), 7, []string{"connection was lost"}},
		{"5, command of nobody", "mosquitto_pub", []string{"-V", "5", "-q", "1", "-t", set, "-n"}, 0, []string{"Publish 1 failed: Not authorized"}},
		{"5, other topic", "mosquitto_pub", append([]string{"-V", "5", "-t", "command/" + application.Name + "/dev", "-n"}, key...), 0, []string{"Publish 1 failed: Topic Name invalid"}},
		{"5, events are not published here", "mosquitto_pub", append([]string{"-V", "5", "-t", "app/" + application.Name, "-n"}, key...), 0, []string{"Publish 1 failed: Topic Name invalid"}},
		{"3.1.1, other topic", "mosquitto_pub", append([]string{"-V", "311", "-t", "other", "-n"}, key...), 7, []string{"connection was lost"}},
		{
			"5, no UTF-8", "mosquitto_pub", append([]string{"-V", "5", "-t", set, "-m", "gr\xfcezi", "-D", "publish", "payload-format-indicator", "1"}, key...), 0,
			[]string{"Publish 1 failed: Payload format invalid"},
		},

		{"5, subscription of a stranger", "mosquitto_sub", append([]string{"-V", "5", "-d", "-t", "app/" + application.Name}, strangers...), 0, []string{"Subscribed (mid: 1): 135", "denied"}},
		{"5, unknown application looks the same", "mosquitto_sub", append([]string{"-V", "5", "-d", "-t", "app/" + testkit.UniqueName(t)}, key...), 0, []string{"Subscribed (mid: 1): 135", "denied"}},
		{"3.1.1, subscription of a stranger", "mosquitto_sub", append([]string{"-V", "311", "-d", "-t", "app/" + application.Name}, strangers...), 0, []string{"Subscribed (mid: 1): 128", "denied"}},
		{"5, wildcard", "mosquitto_sub", append([]string{"-V", "5", "-d", "-t", "app/+"}, key...), 0, []string{"Subscribed (mid: 1): 162", "denied"}},
		{"5, everything", "mosquitto_sub", append([]string{"-V", "5", "-d", "-t", "#"}, key...), 0, []string{"Subscribed (mid: 1): 162", "denied"}},
		{"5, other filter", "mosquitto_sub", append([]string{"-V", "5", "-d", "-t", "app/" + application.Name + "/dev"}, key...), 0, []string{"Subscribed (mid: 1): 143", "denied"}},
		{
			"5, unknown content mode", "mosquitto_sub",
			append([]string{"-V", "5", "-d", "-t", "app/" + application.Name, "-D", "subscribe", "user-property", "content-mode", "other"}, key...), 0,
			[]string{"Subscribed (mid: 1): 131", "denied"},
		},
	}
	t.Run("all", func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				code, stdout, stderr := run(t, mosquitto(tt.program, s.MQTT(), tt.args...))
				if code != tt.code {
					t.Errorf("exit code %d, want %d", code, tt.code)
				}
				for _, words := range tt.says {
					if !strings.Contains(stdout+stderr, words) {
						t.Errorf("it does not say %q:\n%s\n%s", words, stdout, stderr)
					}
				}
			})
		}
	})
	if records := testkit.ReadAll(t, s.Brokers, s.CommandsTopic); len(records) > 0 {
		t.Errorf("%d refused commands are in Kafka", len(records))
	}
}

// mosquitto_sub reconnects by itself and is subscribed again then.
func TestMosquittoReconnects(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	s := system.Start(t, system.Options{})
	application := s.CreateApplication(t, 1)
	relay := system.NewRelay(t, s.MQTT())
	for _, version := range []string{"311", "5"} {
		id := "for-" + version
		subscriber := mosquittoSub(t, relay.Address(), "-V", version, "-u", application.Owner.Name, "-P", application.Owner.Key, "-q", "1",
			"-t", "app/"+application.Name)
		testkit.Produce(t, s.Brokers, application.Topic, binaryRecord("before-"+id, "state", "application/json", "{}"))
		subscriber.line(t, "event", containing(`"id":"before-`+id))
		relay.Cut()
		relay.Restore()
		subscriber.line(t, "second SUBACK", containing("Subscribed (mid"))
		testkit.Produce(t, s.Brokers, application.Topic, binaryRecord("after-"+id, "state", "application/json", "{}"))
		subscriber.line(t, "event", containing(`"id":"after-`+id))
	}
}
