package admin

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

type authenticator interface {
	Authenticate(ctx context.Context, attempt credential.Attempt) (credential.Result, error)
}

type userStore interface {
	CreateUser(ctx context.Context, user store.User) (store.User, error)
	User(ctx context.Context, name string) (store.User, error)
	Users(ctx context.Context, after string, limit int) ([]store.User, error)
	SetUserDisabled(ctx context.Context, name string, disabled bool) (store.User, error)
	DeleteUser(ctx context.Context, name string) error
}

type applicationStore interface {
	CreateApplication(ctx context.Context, name, owner string) (store.Application, error)
	Application(ctx context.Context, name string) (store.Application, error)
	Applications(ctx context.Context, of *policy.Principal, after string, limit int) ([]store.Application, error)
	DeleteApplication(ctx context.Context, name string) error
	TransferOwnership(ctx context.Context, name, owner string) (store.Application, error)
	SetMember(ctx context.Context, application string, member store.Member) error
	RemoveMember(ctx context.Context, application string, member store.Member) error
	Members(ctx context.Context, application string) ([]store.Member, error)
}

type keyStore interface {
	CreateKey(ctx context.Context, key store.Key, hash [32]byte) (store.Key, error)
	FindKey(ctx context.Context, id string) (store.KeyRecord, int64, error)
	Keys(ctx context.Context, user string) ([]store.Key, error)
	RevokeKey(ctx context.Context, id string) error
}

type adminStore interface {
	userStore
	applicationStore
	keyStore
	Facts(ctx context.Context, questions []policy.Question) ([]policy.Facts, int64, error)
}

// Config is what a Server needs.
type Config struct {
	Authenticator authenticator
	Store         adminStore
	Rules         policy.Rules
	// UsersCreateApplications lets every user create applications of their own.
	UsersCreateApplications bool
	// Logger gets the audit log, too.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Server implements AdminService. What it does not implement itself answers
// UNIMPLEMENTED: RotateApiKey and ListAuditRecords.
type Server struct {
	adminv1.UnimplementedAdminServiceServer

	cfg Config
}

var _ adminv1.AdminServiceServer = (*Server)(nil)

// New makes a Server. Its Interceptor has to be installed, too.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg}
}

var errForbidden = status.Error(codes.PermissionDenied, "not allowed")

// may says whether the caller has a permission; on everything when no application
// is named.
func (s *Server) may(ctx context.Context, c caller, permission policy.Permission, application string) (bool, error) {
	question := policy.Question{Principal: c.principal, Credential: c.credential, Permission: permission, Application: application}
	facts, _, err := s.cfg.Store.Facts(ctx, []policy.Question{question})
	if err != nil {
		return false, err
	}
	return policy.Decide(s.cfg.Now(), s.cfg.Rules, question, facts[0]) == policy.Allowed, nil
}

// need is an error if the caller may not.
func (s *Server) need(ctx context.Context, permission policy.Permission, application string) error {
	c := callerOf(ctx)
	allowed, err := s.may(ctx, c, permission, application)
	if err != nil || allowed {
		return err
	}
	if application == "" {
		return errForbidden
	}
	// Whoever may administer everything may know what does not exist.
	if everything, err := s.may(ctx, c, policy.Administer, ""); err != nil {
		return err
	} else if !everything {
		return errForbidden
	}
	if _, err := s.cfg.Store.Application(ctx, application); err != nil {
		return err
	}
	return errForbidden
}

// needSelf returns the caller and a user's name: the caller's own when it is
// empty, and another's if the caller may administer everything.
func (s *Server) needSelf(ctx context.Context, user string) (caller, string, error) {
	c := callerOf(ctx)
	if user == "" || user == c.name {
		return c, c.name, nil
	}
	return c, user, s.need(ctx, policy.Administer, "")
}

// audit notes a change that was made.
func (s *Server) audit(ctx context.Context, action, target string, details ...slog.Attr) {
	c := callerOf(ctx)
	attrs := append([]slog.Attr{
		slog.String("action", action), slog.String("target", target),
		slog.String("principal", c.principal.String()), slog.String("credential_id", c.credential.ID),
		slog.String("address", c.address),
	}, details...)
	s.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "administrative change", attrs...)
}

func invalid(field string, err error) error {
	return status.Errorf(codes.InvalidArgument, "%s: %s", field, err)
}

// page reads the fields of a request for a page.
func page(size int32, token string) (limit int, after string, err error) {
	if size < 0 || size > maxPage {
		return 0, "", status.Errorf(codes.InvalidArgument, "page_size: %d is not between 0 and %d", size, maxPage)
	}
	if size == 0 {
		size = defaultPage
	}
	decoded, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return 0, "", status.Error(codes.InvalidArgument, "page_token: is not from a response")
	}
	return int(size), string(decoded), nil
}

// nextPage is the token after n rows of at most limit.
func nextPage(n, limit int, last func() string) string {
	if n < limit {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(last()))
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// statusOf is what the caller gets for an error.
func (s *Server) statusOf(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // directly: a wrapped status is not for the caller
		return err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	for _, known := range []struct {
		err  error
		code codes.Code
	}{
		{store.ErrUserNotFound, codes.NotFound},
		{store.ErrApplicationNotFound, codes.NotFound},
		{store.ErrMemberNotFound, codes.NotFound},
		{store.ErrKeyNotFound, codes.NotFound},
		{store.ErrUserExists, codes.AlreadyExists},
		{store.ErrNameTaken, codes.AlreadyExists},
		{store.ErrApplicationExists, codes.AlreadyExists},
		{store.ErrOwnsApplications, codes.FailedPrecondition},
		{store.ErrOwner, codes.FailedPrecondition},
		{store.ErrTooManyKeys, codes.FailedPrecondition},
		{store.ErrTooManyMembers, codes.FailedPrecondition},
	} {
		if errors.Is(err, known.err) {
			// Not the whole text, which could tell how far a call came.
			return status.Error(known.code, known.err.Error())
		}
	}
	switch {
	case errors.Is(err, credential.ErrOverloaded):
		return status.Error(codes.ResourceExhausted, "overloaded, try again later")
	case errors.Is(err, oidc.ErrUnavailable):
		return status.Error(codes.Unavailable, "OIDC provider cannot be reached, try again later")
	case errors.Is(err, store.ErrUnavailable):
		s.cfg.Logger.WarnContext(ctx, "administration failed", slog.Any("error", err))
		return status.Error(codes.Unavailable, "store cannot be reached, try again later")
	default:
		return err
	}
}
