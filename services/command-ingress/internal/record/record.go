// Package record turns a command into the Kafka record that devices' consumers
// read: a CloudEvent in binary mode. It is pure.
//
// What an MQTT client can choose (payload, content type, user properties, response
// topic, correlation data) never decides over a header that begins with "ce_", nor
// over whether the record is read as binary or structured mode: whoever consumes
// it may believe the attributes.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/naming"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

// Type is the CloudEvents type of every command.
const Type = "io.drogue.event.v1"

const (
	contentTypeJSON   = "application/json"
	contentTypeBinary = "application/octet-stream"
	// structuredPrefix begins the content types that make a record one of
	// structured mode.
	structuredPrefix = "application/cloudevents"

	userPropertyPrefix = "mqtt_user_"

	// timeLayout is RFC 3339 with microseconds; times are UTC.
	timeLayout = "2006-01-02T15:04:05.000000Z07:00"
)

// Record is a Kafka record without its place in Kafka.
type Record struct {
	Key     []byte
	Value   []byte
	Headers []sarama.RecordHeader
}

// Build makes the record of a command. The error says, for the client, which part
// of the command cannot be carried.
func Build(c *commandsv1.Command, instance string) (Record, error) {
	if err := validate(c); err != nil {
		return Record{}, err
	}
	payload := c.GetPayload()
	if payload == nil {
		payload = []byte{} // a null value would be a tombstone
	}
	key := naming.PartitionKey(c.GetApplication(), c.GetDevice())
	h := make(headers, 0, 20+len(c.GetUserProperties()))
	h.add("ce_specversion", "1.0")
	h.add("ce_id", c.GetId())
	h.add("ce_source", naming.Source(c.GetApplication(), c.GetDevice()))
	h.add("ce_type", Type)
	h.add("ce_subject", c.GetCommand())
	h.add("ce_time", c.GetTime().AsTime().Format(timeLayout))
	h.add("content-type", contentType(c, payload))
	h.add("ce_application", c.GetApplication())
	h.add("ce_device", c.GetDevice())
	h.add("ce_sender", c.GetDevice())
	h.add("ce_partitionkey", key)
	h.add("ce_instance", instance)
	h.addOptional("ce_authtype", c.GetAuthType())
	h.addOptional("ce_authid", c.GetAuthId())
	if c.GetExpireTime() != nil {
		h.add("ce_expirytime", c.GetExpireTime().AsTime().Format(timeLayout))
	}
	h.addOptional("traceparent", c.GetTraceparent())
	if c.GetTraceparent() != "" {
		h.addOptional("tracestate", c.GetTracestate())
	}
	if c.ResponseTopic != nil {
		h.add("mqtt_response_topic", c.GetResponseTopic())
	}
	if c.CorrelationData != nil {
		h = append(h, sarama.RecordHeader{Key: []byte("mqtt_correlation_data"), Value: c.GetCorrelationData()})
	}
	if c.GetDuplicate() {
		h.add("mqtt_dup", "true")
	}
	for _, p := range c.GetUserProperties() {
		if !isTrace(p.GetName()) {
			h.add(userPropertyPrefix+p.GetName(), p.GetValue())
		}
	}
	return Record{Key: []byte(key), Value: payload, Headers: h}, nil
}

// Size is what Kafka's limit is about: key, value and headers together.
func (r *Record) Size() int {
	size := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		size += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return size
}

type headers []sarama.RecordHeader

func (h *headers) add(name, value string) {
	*h = append(*h, sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
}

func (h *headers) addOptional(name, value string) {
	if value != "" {
		h.add(name, value)
	}
}

func validate(c *commandsv1.Command) error {
	for _, attribute := range []struct {
		name, value string
		required    bool
	}{
		{"id", c.GetId(), true},
		{"application", c.GetApplication(), true},
		{"device", c.GetDevice(), true},
		{"command", c.GetCommand(), true},
		{"content type", c.GetContentType(), false},
		{"authtype", c.GetAuthType(), false},
		{"authid", c.GetAuthId(), false},
		{"traceparent", c.GetTraceparent(), false},
		{"tracestate", c.GetTracestate(), false},
	} {
		if attribute.required && strings.TrimSpace(attribute.value) == "" {
			return fmt.Errorf("%s is missing", attribute.name)
		}
		if !cloudevent.ValidString(attribute.value) {
			return fmt.Errorf("%s has characters that a CloudEvent cannot carry", attribute.name)
		}
	}
	if !valid(c.GetTime().AsTime(), c.GetTime() != nil) {
		return errors.New("time is missing or not valid")
	}
	if c.GetExpireTime() != nil && !valid(c.GetExpireTime().AsTime(), true) {
		return errors.New("expiry time is not valid")
	}
	return nil
}

// valid says whether RFC 3339 has a form for t.
func valid(t time.Time, present bool) bool {
	return present && t.Year() >= 1 && t.Year() <= 9999
}

// contentType is datacontenttype. A content type that would turn the record into a
// structured event, in which the client could claim to be anybody, counts as if
// none had been given.
func contentType(c *commandsv1.Command, payload []byte) string {
	given := strings.TrimSpace(c.GetContentType())
	structured := len(given) >= len(structuredPrefix) && strings.EqualFold(given[:len(structuredPrefix)], structuredPrefix)
	switch {
	case given != "" && !structured:
		return c.GetContentType()
	case utf8.Valid(payload) && json.Valid(payload):
		return contentTypeJSON
	default:
		return contentTypeBinary
	}
}

// isTrace says whether a user property is trace context, which travels as headers
// of its own.
func isTrace(name string) bool {
	switch name {
	case "traceparent", "tracestate", "baggage":
		return true
	default:
		return false
	}
}
