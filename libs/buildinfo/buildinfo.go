package buildinfo

import (
	"runtime/debug"
	"sync"
)

// Set by the linker; empty in a build without stamps.
var (
	version  string
	revision string
)

// Version is the release of this binary, such as "v1.2.3", or "devel" where
// neither the linker nor the toolchain knows one. It is never empty.
func Version() string {
	if version != "" {
		return version
	}
	v, _ := recorded()
	return v
}

// Revision is the commit that the binary was built from, with "-dirty" behind
// it when the working tree had changes. It is "unknown" in a build outside of a
// checkout, and never empty.
func Revision() string {
	if revision != "" {
		return revision
	}
	_, r := recorded()
	return r
}

// recorded is what the toolchain wrote into the binary.
var recorded = sync.OnceValues(func() (recordedVersion, recordedRevision string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel", "unknown"
	}
	return fromBuildInfo(info)
})

func fromBuildInfo(info *debug.BuildInfo) (recordedVersion, recordedRevision string) {
	recordedVersion, recordedRevision = "devel", "unknown"
	if v := info.Main.Version; v != "" && v != "(devel)" {
		recordedVersion = v
	}
	var dirty bool
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			recordedRevision = setting.Value
		case "vcs.modified":
			dirty = setting.Value == "true"
		}
	}
	if dirty && recordedRevision != "unknown" {
		recordedRevision += "-dirty"
	}
	return recordedVersion, recordedRevision
}
