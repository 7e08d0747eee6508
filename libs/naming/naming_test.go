package naming_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"mqtt-integration/libs/naming"
)

func TestEventsTopic(t *testing.T) {
	t.Parallel()
	label55 := strings.Repeat("a", 55)
	for _, tt := range []struct{ name, application, want string }{
		{"a label stays readable", "foo", "events-foo"},
		{"dots do not", "foo.bar", "evt-04f98100995b2f5633210e10f21ee022-foo-bar"},
		{"a trailing hyphen goes", "foo-", "evt-03f19ca8da08c40c2d036c8915d383e2-foo"},
		{"one character", "a", "events-a"},
		{"55 bytes still fit", label55, "events-" + label55},
		{"56 bytes do not", label55 + "a", "evt-" + md5Hex(label55+"a") + "-" + strings.Repeat("a", 26)},
		{"upper case becomes lower", "Foo", "evt-" + md5Hex("Foo") + "-foo"},
		{"one hyphen for each character that is not ASCII", "é€x", "evt-" + md5Hex("é€x") + "---x"},
		{"nothing left but the sum", "...", "evt-" + md5Hex("...")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := naming.EventsTopic(tt.application)
			if got != tt.want {
				t.Errorf("EventsTopic(%q) = %q, want %q", tt.application, got, tt.want)
			}
			if len(got) > 63 {
				t.Errorf("EventsTopic(%q) has %d bytes, want at most 63", tt.application, len(got))
			}
		})
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"device1", "device1"},
		{"a/b", "a%2Fb"},
		{"example-app", "example%2Dapp"},
		{"é", "%C3%A9"},
		{"a.b_c~d", "a%2Eb%5Fc%7Ed"},
	} {
		if got := naming.Escape(tt.in); got != tt.want {
			t.Errorf("Escape(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "device1", "a/b", "é", "%41", "\xff\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := naming.Escape(s)
		if strings.ContainsAny(got, "/+#.-_~ ") {
			t.Errorf("Escape(%q) = %q lets a separator through", s, got)
		}
		back, err := url.PathUnescape(got)
		if err != nil || back != s {
			t.Errorf("PathUnescape(Escape(%q)) = %q, %v", s, back, err)
		}
	})
}

func TestGroupsCannotMeet(t *testing.T) {
	t.Parallel()
	a := naming.TransientGroup("sso", "x/y", "c", "1")
	b := naming.TransientGroup("sso", "x", "y/c", "1")
	if a == b {
		t.Errorf("two sessions have the group %q", a)
	}
	if want := "mqtt-transient/sso/x%2Fy/c/1"; a != want {
		t.Errorf("TransientGroup = %q, want %q", a, want)
	}
	if got, want := naming.SessionGroup("sso", "x", "c d"), "mqtt-session/sso/x/c%20d"; got != want {
		t.Errorf("SessionGroup = %q, want %q", got, want)
	}
}

func TestValidateApplication(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"example-app", true},
		{"Grüße aus.Köln", true},
		{strings.Repeat("x", 128), true},
		{strings.Repeat("x", 129), false},
		{"", false},
		{"a/b", false},
		{"a+", false},
		{"#", false},
		{"a\x00b", false},
		{"a\u0085b", false},
		{"\xff", false},
	} {
		if err := naming.ValidateApplication(tt.name); (err == nil) != tt.ok {
			t.Errorf("ValidateApplication(%q) = %v, want ok %t", tt.name, err, tt.ok)
		}
	}
}

func ExamplePartitionKey() {
	fmt.Println(naming.PartitionKey("example-app", "device1"))
	fmt.Println(naming.Source("example-app", "device1"))
	// Output:
	// example%2Dapp/device1
	// drogue://example%2Dapp/device1
}

func md5Hex(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestValidateShare(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"g", true},
		{"a group, with ä", true},
		{strings.Repeat("x", naming.MaxShare), true},
		{"", false},
		{"a/b", false},
		{"a+b", false},
		{"#", false},
		{"a\nb", false},
		{"\xff", false},
		{strings.Repeat("x", naming.MaxShare+1), false},
	} {
		if err := naming.ValidateShare(tt.name); (err == nil) != tt.ok {
			t.Errorf("ValidateShare(%q) = %v, want ok %t", tt.name, err, tt.ok)
		}
	}
}
