package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes, written as "123", "64KiB", "10MiB", "2GiB" or,
// in powers of ten, "5kB", "5MB", "5GB". It is never negative when it comes
// from a configuration.
type ByteSize int64

// The binary units.
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
	TiB ByteSize = 1 << 40
)

// byteUnits is ordered: String takes the first unit that divides the value, and
// UnmarshalText the first that is a suffix of the text, so "B" comes last.
var byteUnits = []struct {
	suffix string
	size   ByteSize
}{
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"B", 1},
}

// String returns the size in the largest binary unit that divides it.
func (b ByteSize) String() string {
	for _, unit := range byteUnits[:4] {
		if b != 0 && b%unit.size == 0 {
			return strconv.FormatInt(int64(b/unit.size), 10) + unit.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText implements [encoding.TextMarshaler].
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *ByteSize) UnmarshalText(text []byte) error {
	number, unit := string(text), ByteSize(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no size in bytes, such as 512, 64KiB or 10MiB", text)
	}
	if n > math.MaxInt64/int64(unit) {
		return fmt.Errorf("%q is too large", text)
	}
	*b = ByteSize(n) * unit
	return nil
}
