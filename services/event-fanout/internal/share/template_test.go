package share_test

import (
	"testing"

	"mqtt-integration/services/event-fanout/internal/share"
)

func TestTemplate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		template, application, group, want string // want "": the template is refused
	}{
		{share.DefaultTemplate, "app", "g", "mqtt/app/g"},
		{share.DefaultTemplate, "a.b", "x/../y", "mqtt/a%2Eb/x%2F%2E%2E%2Fy"},
		{share.DefaultTemplate, "ä", " ", "mqtt/%C3%A4/%20"},
		{"{application}.{group}", "app", "g", "app.g"}, // the ancestor's
		{"{application}.{group}", "app.g", "h", "app%2Eg.h"},
		{"share:{group}@{application}!", "app", "g", "share:g@app!"},
		{"{application}{group}", "", "", ""},
		{"{application}x{group}", "", "", ""},
		{"mqtt/{application}", "", "", ""},
		{"mqtt/{group}/{group}", "", "", ""},
		{"mqtt/{application}/{group}/{other}", "", "", ""},
		{"mqtt/{application}/{group}\n", "", "", ""},
		{"", "", "", ""},
		// What could meet the groups of sessions.
		{"mqtt-session/{application}/{group}", "", "", ""},
		{"mqtt-transient/x/{application}/{group}", "", "", ""},
		{"{application}-session/{group}", "", "", ""},
		{"{application}-{group}", "mqtt", "session/", "mqtt-session%2F"},
		{"mqtt-{group}/{application}", "", "", ""},
		{"mqtt-sessions/{application}/{group}", "app", "g", "mqtt-sessions/app/g"},
	} {
		parsed, err := share.ParseTemplate(tt.template)
		if (err == nil) != (tt.want != "") {
			t.Errorf("ParseTemplate(%q): %v", tt.template, err)
			continue
		}
		if err != nil {
			continue
		}
		if got := parsed.Name(tt.application, tt.group); got != tt.want {
			t.Errorf("%q: Name(%q, %q) = %q, want %q", tt.template, tt.application, tt.group, got, tt.want)
		}
	}
}
