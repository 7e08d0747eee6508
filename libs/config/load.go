package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads the YAML file at path over what cfg holds already, its defaults,
// and then the variables of environ ("NAME=value", as [os.Environ] returns them)
// that start with prefix and "_". An empty path means that there is no file.
//
// A key or variable replaces a list or a scalar; a key of a map adds to it, a
// variable replaces the map. A variable for a list is split at commas
// unless it starts with "[", and is read as YAML then; for anything that is
// neither a list of scalars nor a scalar it is YAML. A variable that is set and
// empty empties strings, lists and maps and is an error for everything else.
//
// Variables with the prefix that belong to no setting are errors, except those
// that Kubernetes sets for a service whose name is the prefix.
//
// The error joins everything that was wrong; cfg is in an undefined state then.
func Load[C any](cfg *C, path string, environ []string, prefix string) error {
	root := reflect.ValueOf(cfg).Elem()
	var errs []error
	if path != "" {
		errs = append(errs, loadFile(root, path))
	}
	errs = append(errs, loadEnvironment(root, environ, prefix))
	return errors.Join(errs...)
}

func loadFile(root reflect.Value, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // an empty file, or comments only
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: has more than one YAML document", path)
	}
	c := checker{place: func(line int) string { return fmt.Sprintf("%s:%d", path, line) }, refuseSecrets: true}
	return c.decode(&document, root, "")
}

// kubernetesVariable is what Kubernetes (and before it Docker's links) puts into
// the environment of every container for a service: for one named like us that
// is AUTHORIZATION_SERVICE_HOST, AUTHORIZATION_PORT_9090_TCP_ADDR and so on.
var kubernetesVariable = regexp.MustCompile(
	`^([A-Z0-9_]*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

func loadEnvironment(root reflect.Value, environ []string, prefix string) error {
	settings, err := settingsOf(root.Type())
	if err != nil {
		return err
	}
	var errs []error
	var unknown []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		suffix, ok := strings.CutPrefix(name, prefix+"_")
		if !ok {
			continue
		}
		s, ok := settings[suffix]
		if !ok {
			if !kubernetesVariable.MatchString(suffix) {
				unknown = append(unknown, name)
			}
			continue
		}
		if err := s.set(root, name, value); err != nil {
			errs = append(errs, err)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		errs = append(errs, fmt.Errorf("%s: there is no such setting", name))
	}
	return errors.Join(errs...)
}

// setting is a leaf of the configuration struct, as the environment sees it.
type setting struct {
	path  string
	index []int
}

// settingsOf lists the settings of a configuration struct by the variable name
// behind the prefix. Two settings with one name are a mistake in the struct.
func settingsOf(t reflect.Type) (map[string]setting, error) {
	settings := map[string]setting{}
	var errs []error
	var walk func(t reflect.Type, path string, index []int)
	walk = func(t reflect.Type, path string, index []int) {
		for _, f := range fieldsOf(t) {
			s := setting{path: join(path, f.key), index: append(slices.Clone(index), f.index...)}
			if section, ok := sectionType(f.typ); ok {
				walk(section, s.path, s.index)
				continue
			}
			name := variableName(s.path)
			if other, ok := settings[name]; ok {
				errs = append(errs, fmt.Errorf("settings %s and %s have the same variable", other.path, s.path))
			}
			settings[name] = s
		}
	}
	walk(t, "", nil)
	return settings, errors.Join(errs...)
}

var nonAlphanumeric = regexp.MustCompile(`[^A-Z0-9]+`)

func variableName(path string) string {
	return nonAlphanumeric.ReplaceAllString(strings.ToUpper(path), "_")
}

// set gives the setting the value of a variable.
func (s setting) set(root reflect.Value, name, value string) error {
	target := root
	for _, i := range s.index {
		if target.Kind() == reflect.Pointer {
			if target.IsNil() {
				target.Set(reflect.New(target.Type().Elem()))
			}
			target = target.Elem()
		}
		target = target.Field(i)
	}
	node, err := variableNode(target.Type(), value)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", name, s.path, err)
	}
	// Into a new value first: decoding a map over an existing one would merge.
	fresh := reflect.New(target.Type()).Elem()
	c := checker{place: func(int) string { return name }}
	if err := c.decode(node, fresh, s.path); err != nil {
		return err
	}
	target.Set(fresh)
	return nil
}

// variableNode is the YAML for the text of a variable.
func variableNode(t reflect.Type, value string) (*yaml.Node, error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case isScalar(t):
		if value == "" && t.Kind() != reflect.String {
			return nil, errors.New("is empty")
		}
		return scalarNode(t, value), nil
	case value == "":
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}, nil
	case t.Kind() == reflect.Slice && isScalar(t.Elem()) && !strings.HasPrefix(strings.TrimSpace(value), "["):
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for part := range strings.SplitSeq(value, ",") {
			list.Content = append(list.Content, scalarNode(t.Elem(), strings.TrimSpace(part)))
		}
		return list, nil
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(value), &document); err != nil {
		return nil, err
	}
	return &document, nil
}

// scalarNode leaves the interpretation of the text to the type of the setting: a
// password "0123" or "yes" stays what it is.
func scalarNode(t reflect.Type, value string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: value}
	if t.Kind() == reflect.String {
		node.Tag = "!!str"
	}
	return node
}

// Print writes cfg as YAML, complete and with its secrets redacted.
func Print(w io.Writer, cfg any) error {
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(cfg); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return encoder.Close()
}
