package oidc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// claims are the claims of a token, by their exact names: package json would
// accept "SUB" for a struct's "sub".
type claims map[string]any

func decodeClaims(payload []byte) (claims, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var c claims
	if err := decoder.Decode(&c); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the claims")
	}
	if c == nil {
		return nil, errors.New("the claims are no object")
	}
	return c, nil
}

// at returns the claim at a dotted path. Names of claims can have dots, too
// ("https://example.com/roles"), so a name that is there wins over a path.
func (c claims) at(path string) (any, bool) {
	if value, ok := c[path]; ok {
		return value, true
	}
	for i, r := range path {
		if r != '.' {
			continue
		}
		if inner, ok := c[path[:i]].(map[string]any); ok {
			if value, ok := claims(inner).at(path[i+1:]); ok {
				return value, true
			}
		}
	}
	return nil, false
}

// text returns a claim that is a string, else "".
func (c claims) text(path string) string {
	value, _ := c.at(path)
	text, _ := value.(string)
	return text
}

// list returns a claim that is a list of strings, or a string with spaces in
// between. What else is in the list does not count.
func (c claims) list(path string) []string {
	value, _ := c.at(path)
	switch value := value.(type) {
	case string:
		return strings.Fields(value)
	case []any:
		var list []string
		for _, element := range value {
			if text, ok := element.(string); ok {
				list = append(list, text)
			}
		}
		return list
	default:
		return nil
	}
}

// audiences are the claim aud, a string (with its spaces) or a list of strings.
func (c claims) audiences() []string {
	if text, ok := c["aud"].(string); ok {
		return []string{text}
	}
	if _, ok := c["aud"].([]any); ok {
		return c.list("aud")
	}
	return nil
}

// maxNumericDate is the end of the year 9999, the last that RFC 3339 can write.
const maxNumericDate = 253402300799

// time returns a claim that is a NumericDate (RFC 7519), zero when it is absent.
func (c claims) time(name string) (time.Time, error) {
	value, ok := c[name]
	if !ok {
		return time.Time{}, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, fmt.Errorf("claim %s is no number", name)
	}
	seconds, err := number.Float64()
	if err != nil || seconds < 1 || seconds > maxNumericDate {
		return time.Time{}, fmt.Errorf("claim %s is no time", name)
	}
	whole := int64(seconds)
	return time.Unix(whole, int64((seconds-float64(whole))*1e9)).UTC(), nil
}
