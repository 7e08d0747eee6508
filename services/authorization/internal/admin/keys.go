package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/naming"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization/internal/apikey"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

const (
	maxDescription     = 256
	maxKeyApplications = 64
)

// scopes in the order in which they are listed.
func scopes() []struct {
	api   adminv1.ApiKeyScope
	scope policy.Scope
} {
	return []struct {
		api   adminv1.ApiKeyScope
		scope policy.Scope
	}{
		{adminv1.ApiKeyScope_API_KEY_SCOPE_READ, policy.ScopeRead},
		{adminv1.ApiKeyScope_API_KEY_SCOPE_WRITE, policy.ScopeWrite},
		{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN, policy.ScopeAdmin},
	}
}

func keyTo(k store.Key) *adminv1.ApiKey {
	to := &adminv1.ApiKey{
		Id: k.ID, User: k.User, Description: k.Description, Applications: k.Applications,
		CreateTime: timestamp(k.CreateTime), ExpireTime: timestamp(k.ExpireTime), LastUseTime: timestamp(k.LastUseTime),
	}
	for _, s := range scopes() {
		if k.Scopes.Has(s.scope) {
			to.Scopes = append(to.Scopes, s.api)
		}
	}
	return to
}

// keyOf checks the fields of a new key. Its user is not set.
func keyOf(request *adminv1.CreateApiKeyRequest, now time.Time) (store.Key, error) {
	key := store.Key{Description: request.GetDescription()}
	if len(key.Description) > maxDescription || !utf8.ValidString(key.Description) {
		return key, invalid("description", fmt.Errorf("has at most %d bytes of UTF-8", maxDescription))
	}
	for _, wanted := range request.GetScopes() {
		i := slices.IndexFunc(scopes(), func(s struct {
			api   adminv1.ApiKeyScope
			scope policy.Scope
		},
		) bool {
			return s.api == wanted
		})
		if i < 0 {
			return key, invalid("scopes", fmt.Errorf("%v is none", wanted))
		}
		key.Scopes |= scopes()[i].scope
	}
	if key.Scopes == 0 {
		key.Scopes = policy.ScopeRead | policy.ScopeWrite
	}
	if len(request.GetApplications()) > maxKeyApplications {
		return key, invalid("applications", fmt.Errorf("at most %d", maxKeyApplications))
	}
	for _, name := range request.GetApplications() {
		if err := naming.ValidateApplication(name); err != nil {
			return key, invalid("applications", err)
		}
		key.Applications = append(key.Applications, name)
	}
	slices.Sort(key.Applications)
	key.Applications = slices.Compact(key.Applications)
	if t := request.GetExpireTime(); t != nil {
		if t.CheckValid() != nil || !t.AsTime().After(now) {
			return key, invalid("expire_time", errors.New("is not in the future"))
		}
		key.ExpireTime = t.AsTime()
	}
	return key, nil
}

// mayGive says whether a caller who signed in with an API key may create another
// one: a key must not be a way to a stronger one, or to one that lives longer.
func mayGive(c caller, key store.Key) bool {
	if c.key == nil {
		return true
	}
	if !c.key.Scopes.Has(key.Scopes) {
		return false
	}
	if len(c.key.Applications) > 0 {
		if len(key.Applications) == 0 {
			return false
		}
		for _, name := range key.Applications {
			if !slices.Contains(c.key.Applications, name) {
				return false
			}
		}
	}
	return c.key.ExpireTime.IsZero() || (!key.ExpireTime.IsZero() && !key.ExpireTime.After(c.key.ExpireTime))
}

// CreateApiKey implements AdminServiceServer.
func (s *Server) CreateApiKey(ctx context.Context, request *adminv1.CreateApiKeyRequest) (*adminv1.CreateApiKeyResponse, error) { //nolint:staticcheck,revive // the generated name
	c, user, err := s.needSelf(ctx, request.GetUser())
	if err != nil {
		return nil, err
	}
	key, err := keyOf(request, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	// Who may administer everything, with this very key, may give to others what
	// they like: they could change the members as well.
	if user == c.name && !mayGive(c, key) {
		return nil, status.Error(codes.PermissionDenied, "an API key cannot create one that may do more or lives longer")
	}
	made := apikey.New()
	key.ID, key.User = made.ID, user
	created, err := s.cfg.Store.CreateKey(ctx, key, made.Hash)
	if err != nil {
		return nil, err
	}
	s.audit(ctx, "CreateApiKey", created.ID, slog.String("user", created.User))
	return &adminv1.CreateApiKeyResponse{ApiKey: keyTo(created), Key: made.Text}, nil
}

// ListApiKeys implements AdminServiceServer.
func (s *Server) ListApiKeys(ctx context.Context, request *adminv1.ListApiKeysRequest) (*adminv1.ListApiKeysResponse, error) { //nolint:staticcheck,revive // the generated name
	_, user, err := s.needSelf(ctx, request.GetUser())
	if err != nil {
		return nil, err
	}
	keys, err := s.cfg.Store.Keys(ctx, user)
	if err != nil {
		return nil, err
	}
	response := &adminv1.ListApiKeysResponse{}
	for _, key := range keys {
		response.ApiKeys = append(response.ApiKeys, keyTo(key))
	}
	return response, nil
}

// RevokeApiKey implements AdminServiceServer.
func (s *Server) RevokeApiKey(ctx context.Context, request *adminv1.RevokeApiKeyRequest) (*adminv1.RevokeApiKeyResponse, error) { //nolint:staticcheck,revive // the generated name
	c := callerOf(ctx)
	record, _, err := s.cfg.Store.FindKey(ctx, request.GetId())
	if err != nil {
		return nil, err
	}
	if record.Owner.Principal != c.principal {
		everything, err := s.may(ctx, c, policy.Administer, "")
		if err != nil {
			return nil, err
		}
		if !everything {
			return nil, store.ErrKeyNotFound // whether it exists is not their business
		}
	}
	if err := s.cfg.Store.RevokeKey(ctx, record.ID); err != nil {
		return nil, err
	}
	s.audit(ctx, "RevokeApiKey", record.ID, slog.String("user", record.Owner.Name))
	return &adminv1.RevokeApiKeyResponse{}, nil
}
