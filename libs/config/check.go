package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

var (
	durationType        = reflect.TypeFor[time.Duration]()
	secretType          = reflect.TypeFor[Secret]()
	yamlUnmarshalerType = reflect.TypeFor[yaml.Unmarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// field is a key of a YAML mapping that a struct describes.
type field struct {
	key   string
	index []int
	typ   reflect.Type
}

// fieldsOf lists the keys of a struct by the rules of package yaml: the tag's
// name or the lower-case name of the field, inline structs in place.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" || (!f.IsExported() && !f.Anonymous) {
			continue
		}
		if slices.Contains(strings.Split(options, ","), "inline") {
			if f.Type.Kind() == reflect.Struct {
				for _, inner := range fieldsOf(f.Type) {
					inner.index = append([]int{i}, inner.index...)
					fields = append(fields, inner)
				}
			}
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		fields = append(fields, field{key: name, index: []int{i}, typ: f.Type})
	}
	return fields
}

// sectionType is the struct behind a setting that is a section of its own, and
// false for a setting with one value.
func sectionType(t reflect.Type) (reflect.Type, bool) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t, t.Kind() == reflect.Struct && !isScalar(t)
}

// isScalar says whether one YAML scalar makes a value of type t. A type that
// reads YAML by itself counts as one: we cannot look into it.
func isScalar(t reflect.Type) bool {
	pointer := reflect.PointerTo(t)
	if pointer.Implements(yamlUnmarshalerType) || pointer.Implements(textUnmarshalerType) {
		return true
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Array, reflect.Map, reflect.Pointer, reflect.Interface:
		return false
	default:
		return true
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// checker compares YAML with the type that it is for. Package yaml does most of
// it, but its errors have no path, its durations may come without a unit, and
// it knows no secrets.
type checker struct {
	place         func(line int) string
	refuseSecrets bool
	paths         map[int]string  // by line
	failed        map[string]bool // by path
	faults        []fault
}

type fault struct {
	line int
	err  error
}

// decode puts a node, which may be a document, into a value. The settings are
// at path.
func (c *checker) decode(node *yaml.Node, into reflect.Value, path string) error {
	c.paths, c.failed = map[int]string{}, map[string]bool{}
	c.check(node, into.Type(), path)
	// Also after an error, to find the others.
	if err := node.Decode(into.Addr().Interface()); err != nil {
		if typeError, ok := errors.AsType[*yaml.TypeError](err); ok {
			for _, message := range typeError.Errors {
				c.failAtLine(message, path)
			}
		} else if len(c.faults) == 0 {
			c.fail(node.Line, path, err.Error())
		}
	}
	slices.SortStableFunc(c.faults, func(a, b fault) int { return a.line - b.line })
	var errs []error
	for _, f := range c.faults {
		errs = append(errs, f.err)
	}
	return errors.Join(errs...)
}

// fail notes the first fault of what is at path.
func (c *checker) fail(line int, path, message string) {
	if path != "" && c.failed[path] {
		return
	}
	c.failed[path] = true
	where := c.place(line)
	if path != "" {
		where += ": " + path
	}
	c.faults = append(c.faults, fault{line: line, err: fmt.Errorf("%s: %s", where, message)})
}

var linePrefix = regexp.MustCompile(`^line (\d+): `)

// failAtLine turns "line 3: cannot unmarshal …" of package yaml into an error
// with the path of what is on that line.
func (c *checker) failAtLine(message, path string) {
	match := linePrefix.FindStringSubmatch(message)
	if match == nil {
		c.fail(0, path, message)
		return
	}
	line, err := strconv.Atoi(match[1])
	if err != nil {
		line = 0
	}
	if known, ok := c.paths[line]; ok {
		path = known
	}
	c.fail(line, path, message[len(match[0]):])
}

// check reports what package yaml would let pass or report without a path.
func (c *checker) check(node *yaml.Node, t reflect.Type, path string) {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind == yaml.DocumentNode {
		if len(node.Content) == 1 {
			c.check(node.Content[0], t, path)
		}
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	c.paths[node.Line] = path
	if isScalar(t) {
		c.checkScalar(node, t, path)
		return
	}
	switch {
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		c.checkStruct(node, t, path)
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		for i := 0; i+1 < len(node.Content); i += 2 {
			c.check(node.Content[i+1], t.Elem(), join(path, node.Content[i].Value))
		}
	case node.Kind == yaml.SequenceNode && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
		for i, element := range node.Content {
			c.check(element, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

func (c *checker) checkStruct(node *yaml.Node, t reflect.Type, path string) {
	fields := fieldsOf(t)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Tag == "!!merge" {
			c.check(value, t, path)
			continue
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value })
		if at < 0 {
			c.fail(key.Line, join(path, key.Value), "there is no such setting")
			continue
		}
		c.check(value, fields[at].typ, join(path, key.Value))
	}
}

func (c *checker) checkScalar(node *yaml.Node, t reflect.Type, path string) {
	if node.Kind != yaml.ScalarNode {
		return
	}
	if node.ShortTag() == "!!null" {
		return
	}
	switch {
	case t == durationType:
		// yaml takes a bare 30 for 30 nanoseconds, which nobody means.
		if _, err := time.ParseDuration(node.Value); err != nil {
			c.fail(node.Line, path, fmt.Sprintf("%q is no duration with a unit, such as 500ms, 30s or 5m", node.Value))
		}
	case t == secretType:
		if c.refuseSecrets && node.Value != "" {
			c.fail(node.Line, path, "a secret comes from the environment or from a file of its own, not from the configuration file")
		}
	case reflect.PointerTo(t).Implements(textUnmarshalerType) && !reflect.PointerTo(t).Implements(yamlUnmarshalerType):
		// Tried out here, because yaml gives up at the error of such a type and
		// says neither line nor path. Then made harmless for it.
		if text, ok := reflect.TypeAssert[encoding.TextUnmarshaler](reflect.New(t)); ok {
			if err := text.UnmarshalText([]byte(node.Value)); err != nil {
				c.fail(node.Line, path, err.Error())
				node.Tag, node.Value = "!!null", ""
			}
		}
	}
}
