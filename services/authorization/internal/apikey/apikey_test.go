package apikey_test

import (
	"strings"
	"testing"

	"mqtt-integration/services/authorization/internal/apikey"
)

func TestNewKeysParse(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		key := apikey.New()
		id, hash, err := apikey.Parse(key.Text)
		if err != nil || id != key.ID || hash != key.Hash {
			t.Fatalf("Parse(%q) = %q, %x, %v, want %q, %x", key.Text, id, hash, err, key.ID, key.Hash)
		}
		if seen[key.ID] || seen[string(hash[:])] {
			t.Fatalf("key %q: the id or the secret came twice", key.Text)
		}
		seen[key.ID], seen[string(hash[:])] = true, true
	}
}

func TestEveryChangedCharacterIsMalformed(t *testing.T) {
	t.Parallel()
	key := apikey.New()
	for i := range len(key.Text) {
		for _, c := range []byte("a0Z_ \x00\xff") {
			changed := key.Text[:i] + string([]byte{c}) + key.Text[i+1:]
			if changed == key.Text {
				continue
			}
			if _, _, err := apikey.Parse(changed); err == nil {
				t.Errorf("Parse(%q) accepts a key with character %d changed", changed, i)
			}
		}
	}
	for _, text := range []string{"", "mqi_", "hunter2", key.Text + "x", key.Text[1:], strings.ToUpper(key.Text)} {
		if _, _, err := apikey.Parse(text); err == nil {
			t.Errorf("Parse(%q) accepts it", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(apikey.New().Text)
	f.Add("mqi_000000000000_00000000000000000000000000000000000000")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, hash, err := apikey.Parse(text)
		if (err == nil) != (id != "") {
			t.Errorf("Parse(%q) = %q, %v", text, id, err)
		}
		if err != nil && hash != [32]byte{} {
			t.Errorf("Parse(%q) gives a hash and an error", text)
		}
		if err == nil && !strings.HasPrefix(text, "mqi_"+id+"_") {
			t.Errorf("Parse(%q) = %q", text, id)
		}
	})
}
