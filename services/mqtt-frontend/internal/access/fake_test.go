package access_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"mqtt-integration/libs/daemon"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	read     = authorizationv1.Permission_PERMISSION_READ
	lifetime = time.Minute
)

// fakeAPI is an authorization service without a network. It allows everything
// but what denied names, at its revision.
type fakeAPI struct {
	authorizationv1.AuthorizationServiceClient

	mu       sync.Mutex
	revision int64
	denied   map[string]bool
	down     bool
	asked    int
	hold     chan struct{} // when set, answers wait for it
	stream   *fakeWatch
	watches  []*authorizationv1.WatchRequest
	hello    func(*authorizationv1.WatchRequest) []*authorizationv1.WatchResponse
}

func (f *fakeAPI) Authorize(ctx context.Context, request *authorizationv1.AuthorizeRequest, _ ...grpc.CallOption) (*authorizationv1.AuthorizeResponse, error) {
	f.mu.Lock()
	f.asked++
	response := &authorizationv1.AuthorizeResponse{
		Allowed:  !f.denied[request.GetApplication()],
		Revision: f.revision,
		Lifetime: durationpb.New(lifetime),
	}
	hold, down := f.hold, f.down
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if down {
		return nil, status.Error(codes.Unavailable, "store is away")
	}
	return response, nil
}

func (f *fakeAPI) Watch(ctx context.Context, request *authorizationv1.WatchRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[authorizationv1.WatchResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches = append(f.watches, request)
	if f.down {
		return nil, status.Error(codes.Unavailable, "connection refused")
	}
	revision := f.revision
	if request.AfterRevision != nil {
		revision = request.GetAfterRevision()
	}
	messages := []*authorizationv1.WatchResponse{helloMessage("store", revision)}
	if f.hello != nil {
		messages = f.hello(request)
	}
	f.stream = &fakeWatch{ctx: ctx, messages: make(chan *authorizationv1.WatchResponse, 100), broken: make(chan struct{})}
	for _, message := range messages {
		f.stream.messages <- message
	}
	return f.stream, nil
}

// send puts messages into the watch that is open.
func (f *fakeAPI) send(messages ...*authorizationv1.WatchResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, message := range messages {
		if change := message.GetChange(); change != nil {
			f.revision = max(f.revision, change.GetRevision())
		}
		f.stream.messages <- message
	}
}

func (f *fakeAPI) breakWatch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.stream.broken)
}

func (f *fakeAPI) set(change func(*fakeAPI)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeAPI) asks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fakeAPI) watchRequests() []*authorizationv1.WatchRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watches
}

// fakeWatch is one watch, with a heartbeat every second while nothing else comes.
type fakeWatch struct {
	grpc.ClientStream

	ctx      context.Context
	messages chan *authorizationv1.WatchResponse
	broken   chan struct{}
	mute     bool
	revision int64
}

func (w *fakeWatch) Recv() (*authorizationv1.WatchResponse, error) {
	heartbeat := time.NewTimer(time.Second)
	defer heartbeat.Stop()
	for {
		select {
		case message := <-w.messages:
			switch m := message.GetMessage().(type) {
			case *authorizationv1.WatchResponse_Hello:
				w.revision = m.Hello.GetRevision()
			case *authorizationv1.WatchResponse_Change:
				w.revision = m.Change.GetRevision()
			case nil:
				w.mute = true
				continue
			}
			return message, nil
		case <-heartbeat.C:
			if w.mute {
				continue
			}
			return &authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Heartbeat{
				Heartbeat: &authorizationv1.Heartbeat{Revision: w.revision},
			}}, nil
		case <-w.broken:
			return nil, io.ErrUnexpectedEOF
		case <-w.ctx.Done():
			return nil, w.ctx.Err()
		}
	}
}

// mute makes a watch silent from here on.
func mute() *authorizationv1.WatchResponse { return &authorizationv1.WatchResponse{} }

func helloMessage(store string, revision int64) *authorizationv1.WatchResponse {
	return &authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Hello{
		Hello: &authorizationv1.WatchHello{StoreId: store, Revision: revision},
	}}
}

func startOver() *authorizationv1.WatchResponse {
	return &authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_StartOver{StartOver: &authorizationv1.StartOver{}}}
}

func change(c *authorizationv1.Change) *authorizationv1.WatchResponse {
	return &authorizationv1.WatchResponse{Message: &authorizationv1.WatchResponse_Change{Change: c}}
}

// start runs a client of api until the test ends. Call it inside a bubble.
func start(t *testing.T, api *fakeAPI) *access.Client {
	t.Helper()
	return startWith(t, access.DefaultConfig(), api)
}

func startWith(t *testing.T, cfg access.Config, api *fakeAPI) *access.Client {
	t.Helper()
	client, err := access.NewWithAPI(cfg, daemon.NewEnv(nil), api, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
	})
	synctest.Wait()
	return client
}

func user(subject string) access.Identity {
	return access.Identity{Issuer: "idp", Subject: subject, Name: "name of " + subject, Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN}
}

func keyOf(subject, key string) access.Identity {
	return access.Identity{Issuer: "idp", Subject: subject, Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY, CredentialID: key}
}

func authorize(t *testing.T, client *access.Client, id access.Identity, application string) access.Decision {
	t.Helper()
	decision, err := client.Authorize(t.Context(), id, read, application, "")
	if err != nil {
		t.Fatalf("Authorize(%s, %s) = %v, want no error", id.Subject, application, err)
	}
	return decision
}
