package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
	"mqtt-integration/services/authorization/internal/watch"
)

const maxBatch = 256

type authenticator interface {
	Authenticate(ctx context.Context, attempt credential.Attempt) (credential.Result, error)
}

type decisionStore interface {
	Facts(ctx context.Context, questions []policy.Question) ([]policy.Facts, int64, error)

	ID() string
	Revision(ctx context.Context) (int64, error)
	Changes(ctx context.Context, after int64, limit int) (changes []store.Change, complete bool, err error)
	Updated() <-chan struct{}
}

// Config is what a Server needs.
type Config struct {
	Authenticator authenticator
	Store         decisionStore
	Rules         policy.Rules
	// Lifetime of answers while no watch is heard.
	Lifetime time.Duration
	// MaxWatches is how many watches may be open.
	MaxWatches int
	// Stopping is closed when the service ends; watches end by it.
	Stopping <-chan struct{}
	Logger   *slog.Logger
	Meter    metric.Meter
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Server implements AuthorizationService.
type Server struct {
	authorizationv1.UnsafeAuthorizationServiceServer

	cfg       Config
	watches   atomic.Int64
	decisions metric.Int64Counter
	open      metric.Int64UpDownCounter
}

var _ authorizationv1.AuthorizationServiceServer = (*Server)(nil)

// New makes a Server. It fails when the instruments cannot be made.
func New(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg}
	var errs [2]error
	s.decisions, errs[0] = cfg.Meter.Int64Counter("mqtt_integration.authorization.decisions",
		metric.WithUnit("{decision}"), metric.WithDescription("Answers about credentials and permissions."))
	s.open, errs[1] = cfg.Meter.Int64UpDownCounter("mqtt_integration.authorization.watches",
		metric.WithUnit("{watch}"), metric.WithDescription("Open watches."))
	return s, errors.Join(errs[:]...)
}

// count counts an answer. The values of reason are the names in the API.
func (s *Server) count(ctx context.Context, rpc, outcome, reason string) {
	s.decisions.Add(ctx, 1, metric.WithAttributes(
		attribute.String("operation", rpc), attribute.String("outcome", outcome), attribute.String("reason", reason)))
}

// Authenticate implements AuthorizationServiceServer.
func (s *Server) Authenticate(ctx context.Context, request *authorizationv1.AuthenticateRequest) (*authorizationv1.AuthenticateResponse, error) {
	attempt := credential.Attempt{Address: request.GetClientAddress(), ConnectionID: request.GetConnectionId()}
	switch c := request.GetCredential().(type) {
	case *authorizationv1.AuthenticateRequest_AccessToken:
		attempt.Kind, attempt.Token = policy.AccessToken, c.AccessToken
	case *authorizationv1.AuthenticateRequest_ApiKey:
		attempt.Kind, attempt.Name, attempt.Key = policy.APIKey, c.ApiKey.GetName(), c.ApiKey.GetKey()
	case *authorizationv1.AuthenticateRequest_Anonymous:
		attempt.Kind = policy.Anonymous
		if attempt.ConnectionID == "" {
			return nil, status.Error(codes.InvalidArgument, "connection_id: is required without credentials")
		}
	default:
		return nil, status.Error(codes.InvalidArgument, "credential: is required")
	}
	result, err := s.cfg.Authenticator.Authenticate(ctx, attempt)
	if err != nil {
		s.count(ctx, "authenticate", "error", "")
		return nil, s.statusOf(ctx, err)
	}
	response := &authorizationv1.AuthenticateResponse{Revision: result.Revision, Lifetime: durationpb.New(s.cfg.Lifetime)}
	if result.Denial != credential.NotDenied {
		reason, text := denialOf(result.Denial)
		s.count(ctx, "authenticate", "deny", reason.String())
		response.Result = &authorizationv1.AuthenticateResponse_Denial{
			Denial: &authorizationv1.AuthenticationDenial{Reason: reason, Message: text},
		}
		return response, nil
	}
	s.count(ctx, "authenticate", "allow", "")
	response.Result = &authorizationv1.AuthenticateResponse_Authenticated{Authenticated: &authorizationv1.Authenticated{
		Principal: &authorizationv1.Principal{
			Issuer: result.Principal.Issuer, Subject: result.Principal.Subject, Name: result.Name,
		},
		Credential: credentialTo(result.Credential),
	}}
	return response, nil
}

func credentialTo(c policy.Credential) *authorizationv1.Credential {
	to := &authorizationv1.Credential{Id: c.ID, Administrator: c.Administrator}
	switch c.Kind {
	case policy.AccessToken:
		to.Kind = authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN
	case policy.APIKey:
		to.Kind = authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY
	case policy.Anonymous:
		to.Kind = authorizationv1.CredentialKind_CREDENTIAL_KIND_ANONYMOUS
	}
	if !c.ExpireTime.IsZero() {
		to.ExpireTime = timestamppb.New(c.ExpireTime)
	}
	return to
}

// denialOf translates a denial. The texts go to clients: which kind, never why.
func denialOf(d credential.Denial) (authorizationv1.AuthenticationDenialReason, string) {
	switch d {
	case credential.Expired:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_EXPIRED, "credentials have expired"
	case credential.NotYetValid:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_NOT_YET_VALID, "token is not valid yet"
	case credential.WrongIssuer:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_ISSUER, "token is from an unknown issuer"
	case credential.WrongAudience:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_AUDIENCE, "token is for another audience"
	case credential.AnonymousDisabled:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_ANONYMOUS_DISABLED, "credentials are required"
	case credential.UserDisabled:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_USER_DISABLED, "user is disabled"
	case credential.TooManyAttempts:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_TOO_MANY_ATTEMPTS, "too many failed attempts"
	default:
		return authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS, "bad credentials"
	}
}

// Authorize implements AuthorizationServiceServer.
func (s *Server) Authorize(ctx context.Context, request *authorizationv1.AuthorizeRequest) (*authorizationv1.AuthorizeResponse, error) {
	responses, err := s.authorize(ctx, []*authorizationv1.AuthorizeRequest{request})
	if err != nil {
		return nil, err
	}
	return responses[0], nil
}

// BatchAuthorize implements AuthorizationServiceServer.
func (s *Server) BatchAuthorize(ctx context.Context, request *authorizationv1.BatchAuthorizeRequest) (*authorizationv1.BatchAuthorizeResponse, error) {
	if n := len(request.GetRequests()); n == 0 || n > maxBatch {
		return nil, status.Errorf(codes.InvalidArgument, "requests: %d is not between 1 and %d", n, maxBatch)
	}
	responses, err := s.authorize(ctx, request.GetRequests())
	if err != nil {
		return nil, err
	}
	return &authorizationv1.BatchAuthorizeResponse{Responses: responses}, nil
}

func (s *Server) authorize(ctx context.Context, requests []*authorizationv1.AuthorizeRequest) ([]*authorizationv1.AuthorizeResponse, error) {
	questions := make([]policy.Question, 0, len(requests))
	for i, request := range requests {
		question, err := questionOf(request)
		if err != nil {
			if len(requests) > 1 {
				err = fmt.Errorf("requests[%d]: %w", i, err)
			}
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		questions = append(questions, question)
	}
	facts, revision, err := s.cfg.Store.Facts(ctx, questions)
	if err != nil {
		s.count(ctx, "authorize", "error", "")
		return nil, s.statusOf(ctx, err)
	}
	now := s.cfg.Now()
	responses := make([]*authorizationv1.AuthorizeResponse, 0, len(requests))
	for i, question := range questions {
		reason := policy.Decide(now, s.cfg.Rules, question, facts[i])
		response := &authorizationv1.AuthorizeResponse{
			Allowed: reason == policy.Allowed, Reason: reasonTo(reason), Revision: revision, Lifetime: durationpb.New(s.cfg.Lifetime),
		}
		if response.GetAllowed() {
			s.count(ctx, "authorize", "allow", "")
		} else {
			s.count(ctx, "authorize", "deny", response.GetReason().String())
		}
		responses = append(responses, response)
	}
	return responses, nil
}

func questionOf(request *authorizationv1.AuthorizeRequest) (policy.Question, error) {
	principal, c := request.GetPrincipal(), request.GetCredential()
	q := policy.Question{
		Principal:   policy.Principal{Issuer: principal.GetIssuer(), Subject: principal.GetSubject()},
		Credential:  policy.Credential{ID: c.GetId(), Administrator: c.GetAdministrator()},
		Application: request.GetApplication(),
		Shared:      request.GetShareName() != "",
	}
	if c.GetExpireTime() != nil {
		q.Credential.ExpireTime = c.GetExpireTime().AsTime()
	}
	switch c.GetKind() {
	case authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN:
		q.Credential.Kind = policy.AccessToken
	case authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY:
		q.Credential.Kind = policy.APIKey
	case authorizationv1.CredentialKind_CREDENTIAL_KIND_ANONYMOUS:
		q.Credential.Kind = policy.Anonymous
	default:
		return q, errors.New("credential.kind: is required")
	}
	switch request.GetPermission() {
	case authorizationv1.Permission_PERMISSION_CONNECT:
		q.Permission = policy.Connect
	case authorizationv1.Permission_PERMISSION_READ:
		q.Permission = policy.Read
	case authorizationv1.Permission_PERMISSION_WRITE:
		q.Permission = policy.Write
	case authorizationv1.Permission_PERMISSION_ADMINISTER:
		q.Permission = policy.Administer
	default:
		return q, errors.New("permission: is required")
	}
	switch {
	case q.Principal.Issuer == "" || q.Principal.Subject == "":
		return q, errors.New("principal: issuer and subject are required")
	case (q.Credential.Kind == policy.APIKey) == (q.Credential.ID == ""):
		return q, errors.New("credential.id: is required for an API key, and only there")
	case q.Application == "" && (q.Permission == policy.Read || q.Permission == policy.Write):
		return q, errors.New("application: is required")
	case q.Application != "" && q.Permission == policy.Connect:
		return q, errors.New("application: is not for this permission")
	case q.Shared && q.Permission != policy.Read:
		return q, errors.New("share_name: is not for this permission")
	}
	return q, nil
}

func reasonTo(r policy.Reason) authorizationv1.AuthorizationDenialReason {
	switch r {
	case policy.NotGranted:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED
	case policy.CredentialRevoked:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED
	case policy.CredentialExpired:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_EXPIRED
	case policy.UserDisabled:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_USER_DISABLED
	case policy.AnonymousForbidden:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_ANONYMOUS_FORBIDDEN
	default:
		return authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_UNSPECIFIED
	}
}

// Watch implements AuthorizationServiceServer.
func (s *Server) Watch(request *authorizationv1.WatchRequest, stream grpc.ServerStreamingServer[authorizationv1.WatchResponse]) error {
	ctx := stream.Context()
	defer s.watches.Add(-1)
	if s.watches.Add(1) > int64(s.cfg.MaxWatches) {
		return status.Error(codes.ResourceExhausted, "too many watches")
	}
	s.open.Add(ctx, 1)
	defer s.open.Add(ctx, -1)
	wanted := watch.Request{StoreID: request.GetStoreId()}
	if request.AfterRevision != nil { // presence, which the getter hides
		after := request.GetAfterRevision()
		wanted.After = &after
	}
	return s.statusOf(ctx, watch.Run(ctx, s.cfg.Stopping, s.cfg.Store, wanted, sink{stream}))
}

// sink translates a watch.
type sink struct {
	stream grpc.ServerStreamingServer[authorizationv1.WatchResponse]
}

func (s sink) Hello(storeID string, revision int64) error {
	return s.stream.Send(&authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Hello{
		Hello: &authorizationv1.WatchHello{StoreId: storeID, Revision: revision},
	}})
}

func (s sink) Change(c store.Change) error {
	change := &authorizationv1.Change{Revision: c.Revision, CredentialId: c.CredentialID, Application: c.Application}
	if c.Principal != (policy.Principal{}) {
		change.Principal = &authorizationv1.Principal{Issuer: c.Principal.Issuer, Subject: c.Principal.Subject}
	}
	return s.stream.Send(&authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Change{Change: change}})
}

func (s sink) Heartbeat(revision int64) error {
	return s.stream.Send(&authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Heartbeat{
		Heartbeat: &authorizationv1.Heartbeat{Revision: revision},
	}})
}

func (s sink) StartOver() error {
	return s.stream.Send(&authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_StartOver{
		StartOver: &authorizationv1.StartOver{},
	}})
}

// statusOf is what the caller gets for an error: no answer, not a denial. Errors
// that it does not know are left to the server, which hides their text.
func (s *Server) statusOf(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, credential.ErrOverloaded):
		return status.Error(codes.ResourceExhausted, "overloaded, try again later")
	case errors.Is(err, watch.ErrStopping):
		return status.Error(codes.Unavailable, "stopping, try again elsewhere")
	case errors.Is(err, oidc.ErrUnavailable):
		// Its own goroutine logs why, once and not per token.
		return status.Error(codes.Unavailable, "OIDC provider cannot be reached, try again later")
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrNameTaken):
		s.cfg.Logger.WarnContext(ctx, "could not decide", slog.Any("error", err))
		return status.Error(codes.Unavailable, "could not decide, try again later")
	default:
		return err
	}
}
