package share

import (
	"errors"
	"fmt"
	"strings"

	"mqtt-integration/libs/naming"
)

// DefaultTemplate is the name of a share group in Kafka.
const DefaultTemplate = "mqtt/{application}/{group}"

const (
	placeApplication = "{application}"
	placeGroup       = "{group}"
)

// Template makes names of consumer groups. The zero value makes none; use
// [ParseTemplate].
type Template struct {
	before, between, after string
	groupFirst             bool
}

// ParseTemplate reads a template, in which {application} and {group} stand once
// each. It is refused when the name of one share group could be that of another,
// or that of a group that belongs to a session.
func ParseTemplate(s string) (Template, error) {
	a, g := strings.Index(s, placeApplication), strings.Index(s, placeGroup)
	if a < 0 || g < 0 || strings.Count(s, "{") != 2 || strings.Count(s, "}") != 2 {
		return Template{}, errors.New("it needs {application} and {group} once each, and no other braces")
	}
	t := Template{groupFirst: g < a}
	first, second := placeApplication, placeGroup
	if t.groupFirst {
		first, second = second, first
	}
	before, rest, _ := strings.Cut(s, first)
	t.before = before
	t.between, t.after, _ = strings.Cut(rest, second)
	if !strings.ContainsFunc(t.between, func(r rune) bool { return !inPart(r) }) {
		return Template{}, errors.New("what separates {application} from {group} needs a character other than letters, digits and %")
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return Template{}, fmt.Errorf("the character %q is not allowed", r)
		}
	}
	for _, reserved := range []string{naming.SessionGroupPrefix, naming.TransientGroupPrefix} {
		if mayBegin([]string{t.before, "", t.between, "", t.after}, reserved) {
			return Template{}, fmt.Errorf("a name could begin with %q, which is for groups of sessions", reserved)
		}
	}
	return t, nil
}

// inPart says whether a character occurs in what is percent-encoded.
func inPart(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '%'
}

// mayBegin says whether a name can begin with a prefix. An empty part stands for
// one or more characters of a percent-encoded text if its index is odd.
func mayBegin(parts []string, prefix string) bool { return mayContinue(parts, 0, prefix) }

func mayContinue(parts []string, i int, prefix string) bool {
	switch {
	case prefix == "":
		return true
	case i == len(parts):
		return false
	case i%2 == 0: // literal
		rest, ok := strings.CutPrefix(prefix, parts[i])
		return strings.HasPrefix(parts[i], prefix) || ok && mayContinue(parts, i+1, rest)
	}
	for n := 0; n < len(prefix) && inPart(rune(prefix[n])); n++ {
		if mayContinue(parts, i+1, prefix[n+1:]) {
			return true
		}
	}
	return false
}

// Name is the consumer group of a share group.
func (t Template) Name(application, share string) string {
	first, second := naming.Escape(application), naming.Escape(share)
	if t.groupFirst {
		first, second = second, first
	}
	return t.before + first + t.between + second + t.after
}
