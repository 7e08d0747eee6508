package session

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/outbound"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

const (
	// maxClientID is the longest client identifier in bytes.
	maxClientID = 256
	// accessTimeout bounds one question to authorization.
	accessTimeout = 5 * time.Second
	// minWindow is the smallest window that event-fanout is asked for: events that
	// wait here so that the client's own window is filled at once.
	minWindow = 16
)

// Connect implements wire.Handler.
func (s *Session) Connect(ctx context.Context, k *wire.Connect) wire.Connack {
	s.level = k.Level
	s.key.clientID = k.ClientID
	answer, ok := s.manager.enter(ctx, s)
	if ok {
		answer = s.connect(ctx, k)
	}
	s.manager.metrics.connect(ctx, answer.Code)
	return answer
}

func refuse(code wire.Code, reason string) wire.Connack {
	return wire.Connack{Code: code, Reason: reason}
}

func (s *Session) connect(ctx context.Context, k *wire.Connect) wire.Connack {
	clientID, refusal := clientIdentifier(k)
	if refusal != nil {
		return *refusal
	}
	if k.Will {
		return refuse(wire.ImplementationSpecificError, "will messages are not supported yet")
	}
	if k.AuthMethod != "" {
		return refuse(wire.BadAuthenticationMethod, "authentication methods are not supported yet")
	}
	if refusal = s.authenticate(ctx, k); refusal != nil {
		return *refusal
	}
	s.mu.Lock() // the manager reads the key of sessions that it knows as owners only
	s.key = key{issuer: s.identity.Issuer, subject: s.identity.Subject, clientID: clientID}
	s.mu.Unlock()
	if !s.expireAt(s.identity.Expires) {
		return refuse(wire.BadUserNameOrPassword, "the credential has expired")
	}
	epoch := s.takeOver(ctx)
	if ctx.Err() != nil {
		return refuse(wire.ServerUnavailable, "connection has ended")
	}
	s.start(k, epoch)
	return s.connack(k)
}

// clientIdentifier returns the identifier of the session, assigned where the
// client may leave it to us.
func clientIdentifier(k *wire.Connect) (string, *wire.Connack) {
	switch {
	case len(k.ClientID) > maxClientID:
		return "", &wire.Connack{Code: wire.ClientIdentifierNotValid, Reason: "client identifier longer than 256 bytes"}
	case k.ClientID != "":
		return k.ClientID, nil
	case k.Level < wire.Level5 && !k.CleanStart: // [MQTT-3.1.3-8]
		return "", &wire.Connack{Code: wire.ClientIdentifierNotValid}
	}
	return "auto-" + uuid.Must(uuid.NewV7()).String(), nil
}

// authenticate finds out who it is, and whether they may be connected.
func (s *Session) authenticate(ctx context.Context, k *wire.Connect) *wire.Connack {
	ctx, cancel := context.WithTimeout(ctx, accessTimeout)
	defer cancel()
	authority := s.manager.deps.Access
	id, err := authority.Authenticate(ctx, s.credentials(k))
	if err != nil {
		return notAuthenticated(err)
	}
	s.identity = id
	// Before the first question, so that no change falls in between.
	s.unwatch = authority.Watch(id, s.changed)
	decision, err := authority.Authorize(ctx, id, authorizationv1.Permission_PERMISSION_CONNECT, "", "")
	switch {
	case err != nil:
		return notAuthenticated(err)
	case decision.Allowed:
		return nil
	}
	switch decision.Reason {
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED:
		return &wire.Connack{Code: wire.BadUserNameOrPassword, Reason: "the credential was revoked"}
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_EXPIRED:
		return &wire.Connack{Code: wire.BadUserNameOrPassword, Reason: "the credential has expired"}
	default:
		return &wire.Connack{Code: wire.NotAuthorized, Reason: "not authorized to connect"}
	}
}

// credentials reads user name and password as the table of the user guide says.
// An empty one is an absent one.
func (s *Session) credentials(k *wire.Connect) access.Credentials {
	c := access.Credentials{ClientAddress: s.conn.Host(), ConnectionID: s.conn.ID()}
	switch {
	case k.UserName == "" && k.Password == "":
		c.Anonymous = true
	case k.Password == "":
		c.Token = k.UserName
	case k.UserName == "":
		c.Token = k.Password
	default:
		c.UserName, c.APIKey = k.UserName, k.Password
	}
	return c
}

func notAuthenticated(err error) *wire.Connack {
	denial, denied := errors.AsType[*access.Denial](err)
	switch {
	case !denied && errors.Is(err, access.ErrOverloaded):
		return &wire.Connack{Code: wire.ServerBusy, Reason: "authorization is overloaded"}
	case !denied:
		return &wire.Connack{Code: wire.ServerUnavailable, Reason: "authorization cannot be reached"}
	}
	code := wire.BadUserNameOrPassword
	switch denial.Reason {
	case authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_ANONYMOUS_DISABLED,
		authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_USER_DISABLED:
		code = wire.NotAuthorized
	case authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_TOO_MANY_ATTEMPTS:
		code = wire.ConnectionRateExceeded
	default:
	}
	return &wire.Connack{Code: code, Reason: denial.Message}
}

// takeOver makes this the connection of its session, and waits until the earlier
// one is silent. A client that does not read delays that by the write timeout.
func (s *Session) takeOver(ctx context.Context) (epoch uint64) {
	previous, epoch := s.manager.claim(s)
	if previous == nil {
		return epoch
	}
	previous.conn.End(takenOver)
	patience := time.NewTimer(s.manager.settings.WriteTimeout + time.Second)
	defer patience.Stop()
	select {
	case <-previous.conn.Engine().Done():
	case <-patience.C:
	case <-ctx.Done():
	}
	return epoch
}

// start sets up what follows a successful CONNECT.
func (s *Session) start(k *wire.Connect, epoch uint64) {
	settings := &s.manager.settings
	inflight := min(int(k.ReceiveMaximum), settings.MaxInflight)
	s.conn.Engine().Start(outbound.Limits{
		Level: k.Level, Events: inflight, Bytes: settings.MaxInflightBytes, MaxPacketSize: k.MaxPacketSize,
	})
	s.window = delivery.Window{
		Events: uint32(max(2*inflight, minWindow)), //nolint:gosec // at most twice a uint16
		Bytes:  uint64(settings.MaxInflightBytes),  //nolint:gosec // positive
	}
	s.events = s.manager.deps.Events.Session(delivery.SessionInfo{
		Issuer: s.key.issuer, Subject: s.key.subject, ClientID: s.key.clientID, ConnectionID: s.conn.ID(),
		Epoch: epoch, ProtocolLevel: k.Level, ClientAddress: s.conn.Host(),
	}, s.lost)
}

func (s *Session) connack(k *wire.Connect) wire.Connack {
	settings := &s.manager.settings
	answer := wire.Connack{
		Code: wire.Success, ReceiveMaximum: settings.ReceiveMaximum, MaxPacketSize: s.maxPacketSize(),
		TopicAliasMaximum: settings.TopicAliasMaximum, MaximumQoS: 2, SharedAvailable: true,
		// Sessions end with their connection so far.
		HasSessionExpiry: k.SessionExpiry > 0,
	}
	if k.ClientID == "" {
		answer.AssignedClientID = s.key.clientID
	}
	if limit := settings.MaxKeepAlive; k.Level >= wire.Level5 && limit > 0 && (k.KeepAlive == 0 || k.KeepAlive > limit) {
		answer.ServerKeepAlive = limit // 3.1.1 cannot be told, and keeps its own
	}
	return answer
}

// recordOverhead is how much larger than its PUBLISH packet the record of a
// command usually is at most: attributes repeat the topic's parts.
const recordOverhead = 4 << 10

// maxPacketSize is the configured one, lowered to what Kafka takes.
func (s *Session) maxPacketSize() uint32 {
	size := int64(s.manager.settings.MaxPacketSize)
	if limit := s.manager.deps.Commands.MaxRecordBytes(); limit > 2*recordOverhead {
		size = min(size, limit-recordOverhead)
	}
	return uint32(size) //nolint:gosec // checked in the configuration
}
