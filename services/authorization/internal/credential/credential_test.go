package credential_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/services/authorization/internal/attempts"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// slow is a verifier that waits for the test.
type slow struct{ begun, end chan struct{} }

func (s slow) Verify(context.Context, string) (oidc.Token, error) {
	s.begun <- struct{}{}
	<-s.end
	return oidc.Token{}, oidc.ErrUnavailable
}

// emptyStore has nobody.
type emptyStore struct{}

func (emptyStore) Revision(context.Context) (int64, error) { return 0, nil }

func (emptyStore) FindKey(context.Context, string) (store.KeyRecord, int64, error) {
	return store.KeyRecord{}, 0, store.ErrKeyNotFound
}

func (emptyStore) SignIn(context.Context, policy.Principal, []string) (store.User, int64, error) {
	return store.User{}, 0, store.ErrUserNotFound
}

func TestOverload(t *testing.T) {
	t.Parallel()
	verifier := slow{begun: make(chan struct{}), end: make(chan struct{})}
	limiter := attempts.New(attempts.Config{})
	defer limiter.Close()
	a := credential.New(credential.Config{
		Store: emptyStore{}, Tokens: verifier, Attempts: limiter, Rules: policy.Rules{}, Logger: slog.New(slog.DiscardHandler), Concurrent: 2,
	})
	token := credential.Attempt{Kind: policy.AccessToken}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, oidc.ErrUnavailable) {
				t.Errorf("Authenticate = %v, want the verifier's error", err)
			}
		})
		<-verifier.begun
	}
	if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, credential.ErrOverloaded) {
		t.Errorf("a third one: %v, want ErrOverloaded", err)
	}
	// Whoever has no token does not wait for the provider of others.
	anonymous := credential.Attempt{Kind: policy.Anonymous, ConnectionID: "c"}
	if result, err := a.Authenticate(t.Context(), anonymous); err != nil || result.Denial != credential.AnonymousDisabled {
		t.Errorf("somebody without a token: %v, %v, want that it is decided", result.Denial, err)
	}
	close(verifier.end)
	wg.Wait()
	wg.Go(func() { <-verifier.begun })
	if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("after that: %v, want the verifier's error", err)
	}
	wg.Wait()
}

// useStore records what is written.
type useStore struct {
	mu     sync.Mutex
	writes []map[string]time.Time
	err    error
}

func (s *useStore) Used(_ context.Context, keys map[string]time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, keys)
	return s.err
}

func TestLastUseIsWrittenRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &useStore{}
		l := credential.NewLastUse(store, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		hour := time.Now().UTC().Truncate(time.Hour)
		for range 1000 {
			l.Note("k1", time.Time{}, time.Now())
			l.Note("k2", hour, time.Now()) // known already
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		l.Note("k2", hour, hour.Add(61*time.Minute))
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		want := []map[string]time.Time{{"k1": hour}, {"k2": hour.Add(time.Hour)}}
		if diff := cmp.Diff(want, store.writes); diff != "" {
			t.Errorf("writes (-want +got)\n%s", diff)
		}
	})
}
