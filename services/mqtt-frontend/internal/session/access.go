package session

import (
	"context"
	"errors"
	"time"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// recheckState says whether decisions are being asked for again.
type recheckState uint8

const (
	recheckIdle recheckState = iota
	recheckRunning
	recheckAgain // something has changed since it began
)

const (
	// undecidedPatience is how long it is tried to reach authorization before a
	// session, for which there is no decision that counts, is ended: events go on
	// until then, although nobody says that they may.
	undecidedPatience = accessTimeout
	undecidedPause    = time.Second
)

// changed is called when a decision may have turned, by a goroutine that must not
// be held up.
func (s *Session) changed() {
	s.mu.Lock()
	idle := s.recheck == recheckIdle
	s.recheck = recheckAgain
	s.mu.Unlock()
	if idle {
		s.run(s.rechecks)
	}
}

func (s *Session) rechecks() {
	for {
		s.mu.Lock()
		if s.recheck == recheckRunning {
			s.recheck = recheckIdle
			s.mu.Unlock()
			return
		}
		s.recheck = recheckRunning
		subscribed := make(map[source]struct{}, len(s.subscriptions))
		for _, sub := range s.subscriptions {
			subscribed[sub.source] = struct{}{}
		}
		s.mu.Unlock()
		ctx := s.conn.Context()
		if !s.still(ctx, authorizationv1.Permission_PERMISSION_CONNECT, source{}) {
			return
		}
		for from := range subscribed {
			if !s.still(ctx, authorizationv1.Permission_PERMISSION_READ, from) {
				return
			}
		}
	}
}

// still reports whether something is still allowed, and ends the connection when
// it is not, or when it cannot be found out.
func (s *Session) still(ctx context.Context, permission authorizationv1.Permission, from source) bool {
	patient, cancel := context.WithTimeout(ctx, undecidedPatience)
	defer cancel()
	for {
		decision, err := s.authorize(patient, permission, from)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil && decision.Allowed:
			return true
		case err == nil:
			s.conn.End(wire.End{Label: labelRevoked, Code: wire.NotAuthorized, Reason: revoked(decision.Reason, from.application)})
			return false
		case patient.Err() != nil || !errors.Is(err, access.ErrUnavailable):
			s.conn.End(wire.End{
				Label: labelUndecided, Code: wire.ImplementationSpecificError, Reason: "authorization cannot be reached", Err: err,
			})
			return false
		}
		select {
		case <-patient.Done():
		case <-time.After(undecidedPause):
		}
	}
}

func (s *Session) authorize(ctx context.Context, permission authorizationv1.Permission, from source) (access.Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, accessTimeout)
	defer cancel()
	return s.manager.deps.Access.Authorize(ctx, s.identity, permission, from.application, from.share)
}

func revoked(reason authorizationv1.AuthorizationDenialReason, application string) string {
	switch reason {
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED:
		return "the credential was revoked"
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_EXPIRED:
		return "the credential has expired"
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_USER_DISABLED:
		return "the user is disabled"
	case authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_ANONYMOUS_FORBIDDEN:
		return "anonymous connections are not allowed"
	default:
	}
	if application == "" {
		return "not authorized to be connected any more"
	}
	return "not authorized to read " + application + " any more"
}

// expireAt ends the connection when its credential does (zero: never), and
// reports false when that is over already.
func (s *Session) expireAt(end time.Time) bool {
	if end.IsZero() {
		return true
	}
	left := time.Until(end)
	if left <= 0 {
		return false
	}
	reason := "access token expired"
	if s.identity.Kind == authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY {
		reason = "API key expired"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expiry = time.AfterFunc(left+s.manager.settings.TokenGrace, func() {
		s.conn.End(wire.End{Label: "credential_expired", Code: wire.NotAuthorized, Reason: reason})
	})
	return true
}
