package telemetry_test

import (
	"testing"

	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/telemetry"
)

func TestTraceContextThereAndBack(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tt := range []struct{ name, parent, state, wantParent, wantState string }{
		{"both", parent, "a=b,c=d", parent, "a=b,c=d"},
		{"no state", parent, "", parent, ""},
		{"state that is none", parent, "=", parent, ""},
		{"nothing", "", "", "", ""},
		{"state alone", "", "a=b", "", ""},
		{"no trace context", "00-0-0-0", "a=b", "", ""},
		{"all zero", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sc := telemetry.ParseTraceContext(tt.parent, tt.state)
			if sc.IsValid() != sc.IsRemote() {
				t.Errorf("%v is not remote", sc)
			}
			if p, s := telemetry.FormatTraceContext(sc); p != tt.wantParent || s != tt.wantState {
				t.Errorf("got %q, %q, want %q, %q", p, s, tt.wantParent, tt.wantState)
			}
		})
	}
	if p, s := telemetry.FormatTraceContext(trace.SpanContext{}); p != "" || s != "" {
		t.Errorf("no span context is %q, %q", p, s)
	}
}
