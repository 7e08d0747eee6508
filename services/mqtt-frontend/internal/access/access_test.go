package access_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mqtt-integration/libs/daemon"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
)

func TestDecisionsAreKeptWhileTheWatchIsHeard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		for range 20 {
			if !authorize(t, client, user("alice"), "app").Allowed {
				t.Fatal("Authorize() = denied, want allowed")
			}
			time.Sleep(lifetime)
		}
		if got := api.asks(); got != 1 {
			t.Errorf("authorization was asked %d times, want once", got)
		}
	})
}

func TestChangeConcernsOnlyThoseThatItNames(t *testing.T) {
	t.Parallel()
	alice, bob, key := user("alice"), user("bob"), keyOf("bob", "k1")
	all := []string{"alice", "bob", "key"}
	tests := []struct {
		name   string
		change *authorizationv1.Change
		told   []string
		asks   int // how many of the three decisions are asked for again
	}{
		{
			name:   "a principal",
			change: &authorizationv1.Change{Principal: &authorizationv1.Principal{Issuer: "idp", Subject: "alice"}},
			told:   []string{"alice"}, asks: 1,
		},
		{
			name:   "a principal of another issuer",
			change: &authorizationv1.Change{Principal: &authorizationv1.Principal{Issuer: "other", Subject: "alice"}},
		},
		{
			name:   "a key",
			change: &authorizationv1.Change{Principal: &authorizationv1.Principal{Issuer: "idp", Subject: "bob"}, CredentialId: "k1"},
			told:   []string{"key"}, asks: 1,
		},
		{
			name:   "a key, without a principal",
			change: &authorizationv1.Change{CredentialId: "k1"},
			told:   []string{"key"}, asks: 1,
		},
		{
			name:   "an application that alice uses",
			change: &authorizationv1.Change{Application: "app-alice"},
			told:   []string{"alice"}, asks: 1,
		},
		{
			name:   "an application that nobody uses",
			change: &authorizationv1.Change{Application: "other"},
		},
		{
			name: "a principal in an application that it does not use",
			change: &authorizationv1.Change{
				Principal: &authorizationv1.Principal{Issuer: "idp", Subject: "alice"}, Application: "other",
			},
			asks: 1, // dropped without need
		},
		{name: "anything", change: &authorizationv1.Change{}, told: all, asks: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				api := &fakeAPI{revision: 7}
				client := start(t, api)
				var mu sync.Mutex
				told := map[string]int{}
				for name, id := range map[string]access.Identity{"alice": alice, "bob": bob, "key": key} {
					stop := client.Watch(id, func() {
						mu.Lock()
						defer mu.Unlock()
						told[name]++
					})
					defer stop()
				}
				ask := func() {
					authorize(t, client, alice, "app-alice")
					authorize(t, client, bob, "app-bob")
					authorize(t, client, key, "app-bob")
				}
				ask()
				before := api.asks()
				tt.change.Revision = 8
				api.send(change(tt.change))
				synctest.Wait()

				mu.Lock()
				defer mu.Unlock()
				if len(told) != len(tt.told) {
					t.Errorf("told = %v, want %v", told, tt.told)
				}
				for _, name := range tt.told {
					if told[name] != 1 {
						t.Errorf("%s was told %d times, want once", name, told[name])
					}
				}
				ask()
				if got := api.asks() - before; got != tt.asks {
					t.Errorf("authorization was asked again %d times, want %d", got, tt.asks)
				}
			})
		})
	}
}

func TestStoppedWatcherIsNotTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		stop := client.Watch(user("alice"), func() { t.Error("a stopped watcher was told") })
		authorize(t, client, user("alice"), "app")
		stop()
		stop()
		api.send(change(&authorizationv1.Change{Revision: 8}), change(&authorizationv1.Change{Revision: 9, Application: "app"}))
		synctest.Wait()
	})
}

func TestAnswerOlderThanAChangeIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7, hold: make(chan struct{})}
		client := start(t, api)
		go func() {
			time.Sleep(time.Second)
			// The answer at revision 7 is on its way when the change comes.
			api.send(change(&authorizationv1.Change{Revision: 8, Principal: &authorizationv1.Principal{Issuer: "idp", Subject: "alice"}}))
			synctest.Wait()
			api.set(func(f *fakeAPI) { f.denied = map[string]bool{"app": true} })
			close(api.hold)
		}()
		if authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() = allowed at revision 7, want denied as of revision 8")
		}
		if got := api.asks(); got != 2 {
			t.Errorf("authorization was asked %d times, want twice", got)
		}
	})
}

func TestReplicaThatLagsIsNotBelieved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		api.send(change(&authorizationv1.Change{Revision: 8, Application: "app"}))
		synctest.Wait()
		api.set(func(f *fakeAPI) { f.revision = 7 })
		_, err := client.Authorize(t.Context(), user("alice"), read, "app", "")
		if !errors.Is(err, access.ErrUnavailable) {
			t.Errorf("Authorize() = %v, want ErrUnavailable", err)
		}
		api.set(func(f *fakeAPI) { f.revision = 8 })
		if !authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() = denied, want allowed")
		}
	})
}

func TestDecisionEndsOneLifetimeAfterTheLastHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		var told atomic.Int32
		defer client.Watch(user("alice"), func() { told.Add(1) })()
		authorize(t, client, user("alice"), "app")
		time.Sleep(10*lifetime + 500*time.Millisecond) // the last heartbeat was half a second ago
		api.set(func(f *fakeAPI) { f.down = true })
		api.breakWatch()

		time.Sleep(lifetime - 600*time.Millisecond)
		if !authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() before the end of the lifetime = denied, want allowed")
		}
		if got := told.Load(); got != 0 {
			t.Errorf("told %d times before the end of the lifetime, want never", got)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if got := told.Load(); got != 1 {
			t.Errorf("told %d times at the end of the lifetime, want once", got)
		}
		if _, err := client.Authorize(t.Context(), user("alice"), read, "app", ""); !errors.Is(err, access.ErrUnavailable) {
			t.Errorf("Authorize() after the lifetime = %v, want ErrUnavailable", err)
		}
		time.Sleep(lifetime)
		if got := told.Load(); got != 2 {
			t.Errorf("told %d times after another lifetime, want twice", got)
		}
		api.set(func(f *fakeAPI) { f.down = false })
		time.Sleep(3 * time.Second)
		if !authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() when authorization is back = denied, want allowed")
		}
	})
}

func TestWatchGoesOnWhereItBrokeOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		var told atomic.Int32
		defer client.Watch(user("alice"), func() { told.Add(1) })()
		authorize(t, client, user("alice"), "app")
		api.send(change(&authorizationv1.Change{Revision: 9, Application: "other"}))
		synctest.Wait()
		api.set(func(f *fakeAPI) {
			f.hello = func(*authorizationv1.WatchRequest) []*authorizationv1.WatchResponse {
				return []*authorizationv1.WatchResponse{
					helloMessage("store", 9), change(&authorizationv1.Change{Revision: 10, Application: "app"}),
				}
			}
			f.revision = 10
			f.denied = map[string]bool{"app": true}
		})
		api.breakWatch()
		time.Sleep(time.Second)
		requests := api.watchRequests()
		last := requests[len(requests)-1]
		if last.AfterRevision == nil || last.GetAfterRevision() != 9 || last.GetStoreId() != "store" {
			t.Errorf("the watch was opened with %v, want after revision 9 of store", last)
		}
		if got := told.Load(); got != 1 {
			t.Errorf("told %d times, want once", got)
		}
		if authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() = allowed, want denied")
		}
	})
}

func TestEverythingIsVoid(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		hello []*authorizationv1.WatchResponse
	}{
		{"when the store is another one", []*authorizationv1.WatchResponse{helloMessage("restored", 3)}},
		{"when changes were missed", []*authorizationv1.WatchResponse{startOver(), helloMessage("store", 30)}},
		{"when changes were missed, said after the hello", []*authorizationv1.WatchResponse{helloMessage("store", 7), startOver(), helloMessage("store", 30)}},
		{"when the watch begins later than asked", []*authorizationv1.WatchResponse{helloMessage("store", 8)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				api := &fakeAPI{revision: 7}
				client := start(t, api)
				var told atomic.Int32
				for i := range 10 {
					defer client.Watch(user(strconv.Itoa(i)), func() { told.Add(1) })()
					authorize(t, client, user(strconv.Itoa(i)), "app")
				}
				api.set(func(f *fakeAPI) {
					f.hello = func(*authorizationv1.WatchRequest) []*authorizationv1.WatchResponse { return tt.hello }
					f.revision = tt.hello[len(tt.hello)-1].GetHello().GetRevision()
				})
				api.breakWatch()
				time.Sleep(time.Second)
				if got := told.Load(); got != 10 {
					t.Errorf("told %d of 10", got)
				}
				before := api.asks()
				for i := range 10 {
					authorize(t, client, user(strconv.Itoa(i)), "app")
				}
				if got := api.asks() - before; got != 10 {
					t.Errorf("asked again %d times, want 10", got)
				}
			})
		})
	}
}

func TestSilentWatchIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		start(t, api)
		api.send(mute())
		time.Sleep(4 * time.Second)
		if got := len(api.watchRequests()); got != 1 {
			t.Fatalf("%d watches after 4 s of silence, want the first", got)
		}
		time.Sleep(2 * time.Second)
		if got := len(api.watchRequests()); got != 2 {
			t.Errorf("%d watches after 6 s of silence, want a second one", got)
		}
	})
}

func TestDenialIsNotKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7, denied: map[string]bool{"app": true}}
		client := start(t, api)
		for range 100 {
			if authorize(t, client, user("alice"), "app").Allowed {
				t.Fatal("Authorize() = allowed, want denied")
			}
		}
		if got := api.asks(); got != 1 {
			t.Errorf("asked %d times at once, want once", got)
		}
		api.set(func(f *fakeAPI) { f.denied = nil })
		time.Sleep(time.Second)
		if !authorize(t, client, user("alice"), "app").Allowed {
			t.Error("Authorize() after a second = denied, want allowed")
		}
	})
}

func TestOneQuestionAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7, hold: make(chan struct{})}
		client := start(t, api)
		first, cancel := context.WithCancel(t.Context())
		var canceled, allowed atomic.Int32
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := client.Authorize(first, user("alice"), read, "app", ""); errors.Is(err, context.Canceled) {
				canceled.Add(1)
			}
		})
		synctest.Wait()
		for range 100 {
			wg.Go(func() {
				if d, err := client.Authorize(t.Context(), user("alice"), read, "app", ""); err == nil && d.Allowed {
					allowed.Add(1)
				}
			})
		}
		synctest.Wait()
		cancel() // he who began must not take the others' answer away
		synctest.Wait()
		close(api.hold)
		wg.Wait()
		if canceled.Load() != 1 || allowed.Load() != 100 || api.asks() != 1 {
			t.Errorf("canceled %d, allowed %d, asked %d; want 1, 100, 1", canceled.Load(), allowed.Load(), api.asks())
		}
	})
}

func TestExpiredCredentialIsAskedAbout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		id := user("alice")
		id.Expires = time.Now().Add(time.Hour).UTC()
		authorize(t, client, id, "app")
		time.Sleep(time.Hour - time.Second)
		authorize(t, client, id, "app")
		if got := api.asks(); got != 1 {
			t.Errorf("asked %d times before the end of the credential, want once", got)
		}
		time.Sleep(time.Second)
		authorize(t, client, id, "app")
		if got := api.asks(); got != 2 {
			t.Errorf("asked %d times after the end of the credential, want twice", got)
		}
	})
}

func TestUnavailableIsNoDenial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		client := start(t, api)
		api.set(func(f *fakeAPI) { f.down = true })
		if _, err := client.Authorize(t.Context(), user("alice"), read, "app", ""); !errors.Is(err, access.ErrUnavailable) {
			t.Errorf("Authorize() = %v, want ErrUnavailable", err)
		}
		api.set(func(f *fakeAPI) { f.down, f.hold = false, make(chan struct{}) })
		began := time.Now()
		if _, err := client.Authorize(t.Context(), user("alice"), read, "app", ""); !errors.Is(err, access.ErrUnavailable) {
			t.Errorf("Authorize() = %v, want ErrUnavailable", err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("a hanging service held the question for %v, want 5 s", took)
		}
	})
}

func TestDecisionsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{revision: 7}
		cfg := access.DefaultConfig()
		cfg.MaxDecisions = 100
		client := startWith(t, cfg, api)
		authorize(t, client, user("alice"), "app")
		// More than are kept; alice is asked about all the time, and so stays.
		for i := range 1000 {
			authorize(t, client, user("x"), strconv.Itoa(i))
			if i%10 == 0 {
				authorize(t, client, user("alice"), "app")
			}
		}
		if got := api.asks(); got != 1001 {
			t.Errorf("asked %d times, want 1001", got)
		}
		authorize(t, client, user("x"), "0")
		if got := api.asks(); got != 1002 {
			t.Errorf("asked %d times, want the oldest to be forgotten", got)
		}
	})
}

func TestReadyWithTheFirstWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{down: true}
		env := daemon.NewEnv(nil)
		client, err := access.NewWithAPI(access.DefaultConfig(), env, api, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- client.Run(ctx) }()
		time.Sleep(10 * time.Second)
		if env.Health.Ready() == nil {
			t.Error("Ready() = nil without a watch")
		}
		api.set(func(f *fakeAPI) { f.down = false })
		time.Sleep(3 * time.Second)
		if err := env.Health.Ready(); err != nil {
			t.Errorf("Ready() = %v with a watch, want nil", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
		if _, err := client.Authorize(context.WithoutCancel(ctx), user("alice"), read, "app", ""); !errors.Is(err, access.ErrUnavailable) {
			t.Errorf("Authorize() after Run = %v, want ErrUnavailable", err)
		}
	})
}
