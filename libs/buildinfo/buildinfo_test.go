package buildinfo //nolint:testpackage // the stamps and what the toolchain recorded can only be set from inside

import (
	"runtime/debug"
	"testing"
)

func TestFromBuildInfo(t *testing.T) {
	t.Parallel()
	setting := func(key, value string) debug.BuildSetting { return debug.BuildSetting{Key: key, Value: value} }
	tests := []struct {
		name         string
		info         debug.BuildInfo
		version, rev string
	}{
		{name: "nothing recorded", version: "devel", rev: "unknown"},
		{
			name:    "checkout without a version",
			info:    debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{setting("vcs.revision", "abc")}},
			version: "devel", rev: "abc",
		},
		{
			name: "changed checkout",
			info: debug.BuildInfo{
				Main:     debug.Module{Version: "v1.2.3"},
				Settings: []debug.BuildSetting{setting("vcs.modified", "true"), setting("vcs.revision", "abc")},
			},
			version: "v1.2.3", rev: "abc-dirty",
		},
		{
			name:    "modified but no revision",
			info:    debug.BuildInfo{Settings: []debug.BuildSetting{setting("vcs.modified", "true")}},
			version: "devel", rev: "unknown",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, r := fromBuildInfo(&tt.info)
			if v != tt.version || r != tt.rev {
				t.Errorf("fromBuildInfo() = %q, %q, want %q, %q", v, r, tt.version, tt.rev)
			}
		})
	}
}

func TestVersionAndRevisionAreNeverEmpty(t *testing.T) {
	t.Parallel()
	if Version() == "" || Revision() == "" {
		t.Errorf("Version() = %q, Revision() = %q, want both to say something", Version(), Revision())
	}
}
