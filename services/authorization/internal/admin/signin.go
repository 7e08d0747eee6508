package admin

import (
	"context"
	"encoding/base64"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/policy"
)

// caller is who is signed in.
type caller struct {
	principal  policy.Principal
	name       string
	credential policy.Credential
	// key is what limits the caller's API key; nil with a token.
	key     *policy.Key
	address string
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// Interceptor signs in the callers of AdminService, and of nothing else.
func (s *Server) Interceptor(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if !strings.HasPrefix(info.FullMethod, "/"+adminv1.AdminService_ServiceDesc.ServiceName+"/") {
		return handler(ctx, request)
	}
	c, err := s.signIn(ctx)
	if err != nil {
		return nil, s.statusOf(ctx, err)
	}
	response, err := handler(context.WithValue(ctx, callerKey{}, c), request)
	return response, s.statusOf(ctx, err)
}

func (s *Server) signIn(ctx context.Context) (caller, error) {
	attempt, err := attemptOf(ctx)
	if err != nil {
		return caller{}, err
	}
	result, err := s.cfg.Authenticator.Authenticate(ctx, attempt)
	if err != nil {
		return caller{}, err
	}
	switch result.Denial {
	case credential.NotDenied:
	case credential.TooManyAttempts:
		return caller{}, status.Error(codes.ResourceExhausted, "too many failed attempts")
	case credential.UserDisabled:
		return caller{}, status.Error(codes.PermissionDenied, "user is disabled")
	case credential.Expired:
		return caller{}, status.Error(codes.Unauthenticated, "credentials have expired")
	case credential.NotYetValid:
		return caller{}, status.Error(codes.Unauthenticated, "token is not valid yet")
	case credential.WrongIssuer:
		return caller{}, status.Error(codes.Unauthenticated, "token is from an unknown issuer")
	case credential.WrongAudience:
		return caller{}, status.Error(codes.Unauthenticated, "token is for another audience")
	default:
		return caller{}, status.Error(codes.Unauthenticated, "bad credentials")
	}
	c := caller{principal: result.Principal, name: result.Name, credential: result.Credential, address: attempt.Address}
	if c.credential.Kind != policy.APIKey {
		return c, nil
	}
	facts, _, err := s.cfg.Store.Facts(ctx, []policy.Question{{Principal: c.principal, Credential: c.credential}})
	if err != nil {
		return caller{}, err
	}
	if c.key = facts[0].Key; c.key == nil {
		return caller{}, status.Error(codes.Unauthenticated, "bad credentials") // revoked a moment ago
	}
	if !c.key.Scopes.Has(policy.ScopeAdmin) {
		return caller{}, status.Error(codes.PermissionDenied, "the API key has no admin scope")
	}
	return c, nil
}

// attemptOf reads "Bearer <token>" or "Basic <base64 of name:key>".
func attemptOf(ctx context.Context) (credential.Attempt, error) {
	attempt := credential.Attempt{Address: addressOf(ctx)}
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return attempt, status.Error(codes.Unauthenticated, "exactly one authorization is required")
	}
	scheme, text, _ := strings.Cut(values[0], " ")
	text = strings.TrimSpace(text)
	switch strings.ToLower(scheme) {
	case "bearer":
		attempt.Kind, attempt.Token = policy.AccessToken, text
		return attempt, nil
	case "basic":
		decoded, err := base64.StdEncoding.DecodeString(text)
		name, key, ok := strings.Cut(string(decoded), ":")
		if err != nil || !ok {
			return attempt, status.Error(codes.Unauthenticated, "authorization Basic is not base64 of name:key")
		}
		attempt.Kind, attempt.Name, attempt.Key = policy.APIKey, name, key
		return attempt, nil
	default:
		return attempt, status.Error(codes.Unauthenticated, "authorization is neither Bearer nor Basic")
	}
}

func addressOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return ""
	}
	return host
}
