package session

import (
	"strings"
	"testing"
	"unicode/utf8"

	"mqtt-integration/libs/naming"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

func FuzzParseCommandTopic(f *testing.F) {
	for _, s := range []string{"command/a/b/c", "command/a//c", "command///", "command/a/b/c/d", "app/a", "command/a/b/", "$SYS", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		target, ok := parseCommandTopic(topic)
		if !ok {
			return
		}
		if got := "command/" + target.application + "/" + target.device + "/" + target.command; got != topic {
			t.Errorf("%q became %q", topic, got)
		}
		for _, part := range []string{target.application, target.device, target.command} {
			if part == "" || strings.Contains(part, "/") {
				t.Errorf("%q has the part %q", topic, part)
			}
		}
	})
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"app/a", "app/+", "#", "a#", "$share/g/app/a", "$share//app/a", "$share/g", "app/a/b", "+/+", "/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, filter string) {
		from, code, reason := parseFilter(filter)
		back := "app/" + from.application
		if from.share != "" {
			back = "$share/" + from.share + "/" + back
		}
		switch {
		case code == wire.Success && (back != filter || naming.ValidateApplication(from.application) != nil || reason != ""):
			t.Errorf("%q is %+v, %q", filter, from, reason)
		case code == wire.Success && from.share != "" && naming.ValidateShare(from.share) != nil:
			t.Errorf("%q is %+v", filter, from)
		case code != wire.Success && (from != source{} || reason == "" || !utf8.ValidString(reason)):
			t.Errorf("%q is refused with %+v, %q", filter, from, reason)
		case code == wire.WildcardNotSupported && !strings.ContainsAny(filter, "+#"):
			t.Errorf("%q has no wildcard", filter)
		}
	})
}
