package issuer

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
)

const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/keys"
	tokenPath     = "/token"

	maxFormBytes = 64 << 10
)

func (i *Issuer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+discoveryPath, i.discovery)
	mux.HandleFunc("GET "+keysPath, i.keySet)
	mux.HandleFunc("POST "+tokenPath, i.token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		unavailable := i.unavailable
		i.mu.Unlock()
		if unavailable {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (i *Issuer) discovery(w http.ResponseWriter, r *http.Request) {
	i.reply(w, r, http.StatusOK, map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.url + keysPath,
		"token_endpoint":                        i.TokenURL(),
		"grant_types_supported":                 []string{"password", "client_credentials"},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic", "client_secret_post", "none"},
		"response_types_supported":              []string{"none"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "ES256"},
		"scopes_supported":                      []string{"openid"},
	})
}

func (i *Issuer) keySet(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.keyRequests++
	i.mu.Unlock()
	i.reply(w, r, http.StatusOK, i.keys.public())
}

// token is the token endpoint of RFC 6749, sections 4.3, 4.4 and 5.
func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if err := r.ParseForm(); err != nil {
		i.refuse(w, r, http.StatusBadRequest, "invalid_request", "the form cannot be read")
		return
	}
	client, ok := i.authenticateClient(r)
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="issuer"`)
		i.refuse(w, r, http.StatusUnauthorized, "invalid_client", "unknown client or wrong client secret")
		return
	}
	claims := map[string]any{"azp": client.ID, "client_id": client.ID}
	scope := strings.Fields(r.PostForm.Get("scope"))
	switch r.PostForm.Get("grant_type") {
	case "password":
		user, ok := i.authenticateUser(r.PostForm.Get("username"), r.PostForm.Get("password"))
		if !ok {
			i.refuse(w, r, http.StatusBadRequest, "invalid_grant", "unknown user or wrong password")
			return
		}
		describe(claims, user.Subject, user.Name, user.Roles)
		maps.Copy(claims, user.Claims)
	case "client_credentials":
		if client.Secret == "" {
			i.refuse(w, r, http.StatusBadRequest, "unauthorized_client", "a public client has no tokens of its own")
			return
		}
		subject := client.Subject
		if subject == "" {
			subject = client.ID
		}
		describe(claims, subject, "service-account-"+client.ID, client.Roles)
	default:
		i.refuse(w, r, http.StatusBadRequest, "unsupported_grant_type", "there are password and client_credentials")
		return
	}
	if len(scope) > 0 {
		claims["scope"] = strings.Join(scope, " ")
	}
	access, err := i.Mint(claims)
	if err != nil {
		i.fail(w, r, err)
		return
	}
	answer := map[string]any{
		"access_token": access,
		"token_type":   "Bearer",
		"expires_in":   int(i.cfg.TokenLifetime.Seconds()),
		"scope":        strings.Join(scope, " "),
	}
	if slices.Contains(scope, "openid") {
		claims["aud"], claims["typ"] = client.ID, "ID"
		if answer["id_token"], err = i.MintToken(Token{Claims: claims, Type: "JWT"}); err != nil {
			i.fail(w, r, err)
			return
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	i.reply(w, r, http.StatusOK, answer)
}

func describe(claims map[string]any, subject, name string, roles []string) {
	claims["sub"], claims["preferred_username"] = subject, name
	if len(roles) > 0 {
		claims["realm_access"] = map[string]any{"roles": roles}
	}
}

func (i *Issuer) authenticateClient(r *http.Request) (Client, bool) {
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	for _, c := range i.cfg.Clients {
		if c.ID == id {
			return c, same(c.Secret, secret)
		}
	}
	return Client{}, false
}

func (i *Issuer) authenticateUser(name, password string) (User, bool) {
	for _, u := range i.cfg.Users {
		if u.Name == name {
			return u, same(u.Password, password)
		}
	}
	return User{}, false
}

// same compares secrets in a time that depends on neither.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

func (i *Issuer) refuse(w http.ResponseWriter, r *http.Request, status int, code, description string) {
	i.reply(w, r, status, map[string]string{"error": code, "error_description": description})
}

func (i *Issuer) fail(w http.ResponseWriter, r *http.Request, err error) {
	i.cfg.Logger.LogAttrs(r.Context(), slog.LevelError, "token request", slog.Any("error", err))
	i.refuse(w, r, http.StatusInternalServerError, "server_error", "internal error")
}

func (i *Issuer) reply(w http.ResponseWriter, r *http.Request, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		i.cfg.Logger.LogAttrs(r.Context(), slog.LevelError, "encode answer", slog.Any("error", err))
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that went away is no concern of ours.
	_, _ = w.Write(append(data, '\n'))
}
