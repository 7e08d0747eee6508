package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxName is the size of the longest login name in bytes.
const MaxName = 128

// ValidateLoginName reports what is wrong with a login name: it has 1 to 128 bytes
// of UTF-8, no control characters, and no ":", which ends the name in HTTP's Basic
// authentication.
func ValidateLoginName(name string) error {
	switch {
	case name == "":
		return errors.New("a login name may not be empty")
	case len(name) > MaxName:
		return fmt.Errorf("a login name has at most %d bytes, not %d", MaxName, len(name))
	case !utf8.ValidString(name):
		return fmt.Errorf("login name %q is not UTF-8", name)
	case strings.ContainsRune(name, ':') || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("login name %q has a colon or a control character", name)
	}
	return nil
}
