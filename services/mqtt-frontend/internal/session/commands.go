package session

import (
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/command"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

const (
	// maxUserProperties of a command, and their size.
	maxUserProperties     = 32
	maxUserPropertiesSize = 8 << 10
	// retryPause is how long a command of an MQTT 3.1.1 client, which cannot be told
	// about quotas, waits before it is tried again.
	retryPause = 200 * time.Millisecond
)

// Publish implements wire.Handler: a PUBLISH is a command.
func (s *Session) Publish(p *wire.Publish) {
	if !s.acks.room(s.conn.Context(), p) {
		return
	}
	if s.draining.Load() {
		<-s.conn.Context().Done() // nothing is begun any more
		return
	}
	if !s.admissible(p) {
		return
	}
	slot, place := s.acks.reserve(p, s.level >= wire.Level5)
	switch place {
	case placeNew:
	case placeRepeated:
		return
	case placeFull:
		s.conn.End(wire.End{
			Label: "receive_maximum", Code: wire.ReceiveMaximumExceeded, Reason: "more unacknowledged PUBLISH packets than the receive maximum",
		})
		return
	case placeInUse:
		if s.level < wire.Level5 {
			s.conn.End(wire.End{Label: "protocol_error", Code: wire.ProtocolError, Reason: "packet identifier in use"})
			return
		}
	}
	a := &attempt{publish: p, slot: slot, trace: s.startTrace(p)}
	if place == placeInUse {
		s.settle(a, wire.PacketIdentifierInUse, "packet identifier in use")
		return
	}
	target, code, reason := s.judge(p)
	if code != wire.Success {
		s.settle(a, code, reason)
		return
	}
	a.command, a.deadline = s.command(p, target), time.Now().Add(s.manager.settings.CommandTimeout)
	a.trace.travel(a.command)
	s.send(a)
}

// admissible checks what ends the connection, and resolves the topic alias.
func (s *Session) admissible(p *wire.Publish) bool {
	switch {
	case p.Retain && s.level >= wire.Level5:
		s.conn.End(wire.End{Label: labelUnsupported, Code: wire.RetainNotSupported, Reason: "nothing is retained"})
		return false
	case s.level < wire.Level5:
		return s.acks.wait(s.conn.Context())
	case p.TopicAlias == 0:
		return true
	case p.Topic != "":
		if s.aliases == nil {
			s.aliases = make(map[uint16]string)
		}
		s.aliases[p.TopicAlias] = p.Topic // at most Topic Alias Maximum of them
		return true
	}
	topic, ok := s.aliases[p.TopicAlias]
	if !ok {
		s.conn.End(wire.End{Label: "protocol_error", Code: wire.ProtocolError, Reason: "topic alias that was not set"})
		return false
	}
	p.Topic = topic
	return true
}

// judge checks what is answered by a reason code in the acknowledgement.
func (s *Session) judge(p *wire.Publish) (commandTarget, wire.Code, string) {
	target, ok := parseCommandTopic(p.Topic)
	if !ok {
		return target, wire.TopicNameInvalid, "not command/<application>/<device>/<command>"
	}
	if p.UTF8 && !utf8.Valid(p.Payload) {
		return target, wire.PayloadFormatInvalid, "payload is not UTF-8"
	}
	size := 0
	for _, u := range p.UserProperties {
		size += len(u.Name) + len(u.Value)
	}
	if len(p.UserProperties) > maxUserProperties || size > maxUserPropertiesSize {
		return target, wire.QuotaExceeded, "more than 32 user properties or 8 KiB of them"
	}
	decision, err := s.authorize(s.conn.Context(), authorizationv1.Permission_PERMISSION_WRITE, source{application: target.application})
	switch {
	case err != nil:
		return target, wire.ImplementationSpecificError, "authorization cannot be reached"
	case !decision.Allowed:
		return target, wire.NotAuthorized, "not authorized to send commands to " + target.application
	}
	return target, wire.Success, ""
}

func (s *Session) command(p *wire.Publish, target commandTarget) *commandsv1.Command {
	now := time.Now().UTC()
	c := &commandsv1.Command{
		Id: uuid.Must(uuid.NewV7()).String(), Application: target.application, Device: target.device, Command: target.command,
		Time: timestamppb.New(now), Payload: p.Payload, ContentType: p.ContentType, ResponseTopic: p.ResponseTopic,
		CorrelationData: p.CorrelationData, PrincipalIssuer: s.key.issuer, PrincipalSubject: s.key.subject,
	}
	if p.HasExpiry {
		c.ExpireTime = timestamppb.New(now.Add(time.Duration(p.Expiry) * time.Second))
	}
	if s.manager.settings.AuthContext {
		c.AuthType, c.AuthId = s.authContext()
	}
	for _, u := range p.UserProperties {
		if !slices.Contains(traceProperties, u.Name) {
			c.UserProperties = append(c.UserProperties, &commandsv1.UserProperty{Name: u.Name, Value: u.Value})
		}
	}
	return c
}

func (s *Session) authContext() (authType, authID string) {
	id := s.key.issuer + "/" + s.key.subject
	switch s.identity.Kind {
	case authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN:
		return "user", id
	case authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY:
		return "api_key", id
	default:
		return "unauthenticated", ""
	}
}

// attempt is a command on its way.
type attempt struct {
	publish  *wire.Publish
	slot     *slot
	trace    commandTrace
	command  *commandsv1.Command
	deadline time.Time
	stalled  bool // nothing is read until it has its result
}

func (s *Session) send(a *attempt) {
	s.manager.deps.Commands.Publish(a.command, func(r command.Result) { s.result(a, r) })
}

// result maps what became of a command to its acknowledgement.
func (s *Session) result(a *attempt, r command.Result) {
	code, reason := wire.ImplementationSpecificError, r.Message
	switch r.Status {
	case commandsv1.ResultStatus_RESULT_STATUS_OK:
		code = wire.Success
	case commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED, commandsv1.ResultStatus_RESULT_STATUS_QUOTA_EXCEEDED:
		if s.level < wire.Level5 && a.slot != nil && time.Now().Before(a.deadline) {
			s.later(a)
			return
		}
		code = wire.QuotaExceeded
	case commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE:
		code = wire.QuotaExceeded
		if reason == "" {
			reason = "larger than Kafka takes"
		}
	case commandsv1.ResultStatus_RESULT_STATUS_INVALID, commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE,
		commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME, commandsv1.ResultStatus_RESULT_STATUS_UNSPECIFIED:
		if reason == "" {
			reason = "the command could not be written in time"
		}
	}
	s.finish(a, code, reason)
}

func (s *Session) finish(a *attempt, code wire.Code, reason string) {
	if a.stalled {
		s.acks.stall(-1)
	}
	s.settle(a, code, reason)
}

// later tries a command of a client of MQTT 3.1.1 again, from which nothing is
// read meanwhile.
func (s *Session) later(a *attempt) {
	if !a.stalled {
		a.stalled = true
		s.acks.stall(+1)
	}
	time.AfterFunc(retryPause, func() {
		if s.conn.Context().Err() == nil {
			s.send(a)
			return
		}
		s.finish(a, wire.QuotaExceeded, "")
	})
}

func (s *Session) settle(a *attempt, code wire.Code, reason string) {
	s.manager.metrics.published(s.conn.Context(), a.publish.QoS, code)
	s.acks.settle(a.publish, a.slot, code, reason)
	a.trace.end(code, reason)
}

// Release implements wire.Handler: PUBREL ends QoS 2, for good or for what was not
// begun.
func (s *Session) Release(id uint16) {
	code := wire.Success
	if !s.acks.release(id) {
		code = wire.PacketIdentifierNotFound
	}
	s.conn.Pubcomp(id, code)
}

// refuses reports whether the acknowledgement of a slot says no, or is not sent:
// with QoS 2, PUBREL does not follow.
func (s *Session) refuses(p *slot) bool {
	return p.code.Refused() && (s.level >= wire.Level5 || forNow(p.code) || !s.manager.settings.AcknowledgeRejected)
}

// forNow reports whether a command that was not accepted may be if it is sent again.
func forNow(code wire.Code) bool {
	return code == wire.ImplementationSpecificError || code == wire.QuotaExceeded
}

// acknowledge sends the acknowledgement of a slot. It reports false when the
// connection was ended instead: MQTT 3.1.1 has no negative acknowledgement. What
// failed for now is to be sent again. What always will, only if the configuration
// does not say that it is to be acknowledged.
func (s *Session) acknowledge(p *slot) bool {
	code, reason := p.code, p.reason
	if s.level < wire.Level5 {
		if s.refuses(p) {
			s.conn.End(wire.End{Label: labelCommand, Code: code, Reason: reason})
			return false
		}
		code, reason = wire.Success, ""
	}
	if p.qos == 2 {
		s.conn.Pubrec(p.id, code, reason)
	} else {
		s.conn.Puback(p.id, code, reason)
	}
	return true
}
