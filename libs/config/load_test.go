package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/config"
)

type testConfig struct {
	Shared   `yaml:",inline"`
	Name     string            `yaml:"name"`
	Count    int               `yaml:"count"`
	Ratio    float64           `yaml:"ratio"`
	Enabled  bool              `yaml:"enabled"`
	Brokers  []string          `yaml:"brokers"`
	Ports    []uint16          `yaml:"ports"`
	Labels   map[string]string `yaml:"labels"`
	Issuers  []testIssuer      `yaml:"issuers"`
	Limit    config.ByteSize   `yaml:"limit"`
	Store    testStore         `yaml:"store"`
	Optional *testStore        `yaml:"optional"`
	Password config.Secret     `yaml:"password"`
	Ignored  string            `yaml:"-"`
}

type Shared struct {
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

type testStore struct {
	DSN     string          `yaml:"dsn"`
	Timeout time.Duration   `yaml:"timeout"`
	Waits   []time.Duration `yaml:"waits"`
}

type testIssuer struct {
	Alias  string        `yaml:"alias"`
	Secret config.Secret `yaml:"secret"`
}

func defaults() testConfig {
	return testConfig{
		Shared:  Shared{DrainTimeout: 30 * time.Second},
		Name:    "default",
		Brokers: []string{"localhost:9092"},
		Labels:  map[string]string{"a": "1"},
	}
}

func load(t *testing.T, yaml string, environ ...string) (testConfig, error) {
	t.Helper()
	path := ""
	if yaml != "" {
		path = filepath.Join(t.TempDir(), "test.yaml")
		if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := defaults()
	err := config.Load(&cfg, path, environ, "MY_SERVICE")
	return cfg, err
}

func TestLoad(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		yaml    string
		environ []string
		want    func(*testConfig)
	}{
		{name: "nothing leaves the defaults", want: func(*testConfig) {}},
		{name: "a file with comments only leaves the defaults", yaml: "# name: x\n", want: func(*testConfig) {}},
		{
			name: "the file replaces scalars and lists, and keeps the rest",
			yaml: "name: file\nbrokers: [a:1, b:2]\ndrain_timeout: 5s\nlimit: 64KiB\nstore:\n  timeout: 1m\n",
			want: func(c *testConfig) {
				c.Name, c.Brokers, c.DrainTimeout, c.Limit = "file", []string{"a:1", "b:2"}, 5*time.Second, 64*config.KiB
				c.Store.Timeout = time.Minute
			},
		},
		{
			name: "the file adds to a map, a variable replaces it",
			yaml: "labels: {b: '2'}\n",
			want: func(c *testConfig) { c.Labels = map[string]string{"a": "1", "b": "2"} },
		},
		{
			name:    "a variable replaces a map",
			environ: []string{"MY_SERVICE_LABELS={c: '3'}"},
			want:    func(c *testConfig) { c.Labels = map[string]string{"c": "3"} },
		},
		{
			name: "the environment wins over the file",
			yaml: "name: file\ncount: 1\n",
			environ: []string{
				"MY_SERVICE_NAME=env", "MY_SERVICE_STORE_DSN=file:x?a=b", "MY_SERVICE_DRAIN_TIMEOUT=1s",
				"MY_SERVICE_ENABLED=true", "MY_SERVICE_RATIO=0.5", "OTHER_NAME=x", "MY_SERVICENAME=x",
			},
			want: func(c *testConfig) {
				c.Name, c.Count, c.Store.DSN, c.DrainTimeout, c.Enabled, c.Ratio = "env", 1, "file:x?a=b", time.Second, true, 0.5
			},
		},
		{
			name:    "lists are split at commas",
			environ: []string{"MY_SERVICE_BROKERS=a:1, b:2", "MY_SERVICE_PORTS=1,2", "MY_SERVICE_STORE_WAITS=1s,2s"},
			want: func(c *testConfig) {
				c.Brokers, c.Ports = []string{"a:1", "b:2"}, []uint16{1, 2}
				c.Store.Waits = []time.Duration{time.Second, 2 * time.Second}
			},
		},
		{
			name:    "lists may be YAML",
			environ: []string{`MY_SERVICE_BROKERS=["a,1", b]`, "MY_SERVICE_ISSUERS=[{alias: x, secret: s}]"},
			want: func(c *testConfig) {
				c.Brokers, c.Issuers = []string{"a,1", "b"}, []testIssuer{{Alias: "x", Secret: "s"}}
			},
		},
		{
			name:    "an empty variable empties",
			environ: []string{"MY_SERVICE_NAME=", "MY_SERVICE_BROKERS=", "MY_SERVICE_LABELS="},
			want:    func(c *testConfig) { c.Name, c.Brokers, c.Labels = "", nil, nil },
		},
		{
			name:    "text that looks like YAML stays text",
			environ: []string{"MY_SERVICE_NAME=null", "MY_SERVICE_PASSWORD=0123: [#", "MY_SERVICE_STORE_DSN=~"},
			want:    func(c *testConfig) { c.Name, c.Password, c.Store.DSN = "null", "0123: [#", "~" },
		},
		{
			name:    "a section behind a pointer comes into being",
			environ: []string{"MY_SERVICE_OPTIONAL_TIMEOUT=3s"},
			want:    func(c *testConfig) { c.Optional = &testStore{Timeout: 3 * time.Second} },
		},
		{
			name: "what Kubernetes sets for a service of our name is not ours",
			environ: []string{
				"MY_SERVICE_SERVICE_HOST=10.0.0.1", "MY_SERVICE_SERVICE_PORT=1", "MY_SERVICE_SERVICE_PORT_GRPC=1",
				"MY_SERVICE_PORT=tcp://10.0.0.1:1", "MY_SERVICE_PORT_1_TCP=x", "MY_SERVICE_PORT_1_TCP_ADDR=10.0.0.1",
				"MY_SERVICE_ADMIN_SERVICE_HOST=10.0.0.1", "MY_SERVICE_ADMIN_PORT_9090_TCP_PROTO=tcp",
			},
			want: func(*testConfig) {},
		},
		{
			name: "anchors and merges",
			yaml: "store: &s {dsn: x, timeout: 1s}\noptional:\n  <<: *s\n  timeout: 2s\n",
			want: func(c *testConfig) {
				c.Store = testStore{DSN: "x", Timeout: time.Second}
				c.Optional = &testStore{DSN: "x", Timeout: 2 * time.Second}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, tt.yaml, tt.environ...)
			if err != nil {
				t.Fatalf("Load() = %v", err)
			}
			want := defaults()
			tt.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Load() gave (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		yaml    string
		environ []string
		want    []string // the lines of the error; FILE is the path of the file
	}{
		{
			name: "unknown keys, with their path and line",
			yaml: "name: x\nstroe:\n  dsn: y\nstore:\n  dns: z\n",
			want: []string{"FILE:2: stroe: there is no such setting", "FILE:5: store.dns: there is no such setting"},
		},
		{name: "a field that is not for the file", yaml: "ignored: x\n", want: []string{"FILE:1: ignored: there is no such setting"}},
		{
			name: "unknown key in a list",
			yaml: "issuers:\n  - alias: a\n  - alia: b\n",
			want: []string{"FILE:3: issuers[1].alia: there is no such setting"},
		},
		{
			name: "wrong types, with their path",
			yaml: "count: many\nstore:\n  dsn: [1]\nports: [1, 70000]\n",
			want: []string{
				"FILE:1: count: cannot unmarshal !!str `many` into int",
				"FILE:3: store.dsn: cannot unmarshal !!seq into string",
				"FILE:4: ports[1]: cannot unmarshal !!int `70000` into uint16",
			},
		},
		{
			name: "a section that is a scalar",
			yaml: "store: x\n",
			want: []string{"FILE:1: store: cannot unmarshal !!str `x` into config_test.testStore"},
		},
		{
			name: "durations without a unit",
			yaml: "drain_timeout: 30\nstore:\n  waits: [1s, 2]\n",
			want: []string{
				`FILE:1: drain_timeout: "30" is no duration with a unit, such as 500ms, 30s or 5m`,
				`FILE:3: store.waits[1]: "2" is no duration with a unit, such as 500ms, 30s or 5m`,
			},
		},
		{
			name: "size that is none",
			yaml: "name: x\nlimit: 10 apples\n",
			want: []string{`FILE:2: limit: "10 apples" is no size in bytes, such as 512, 64KiB or 10MiB`},
		},
		{
			name: "secrets in the file",
			yaml: "password: hunter2\nissuers: [{secret: hunter3}]\n",
			want: []string{
				"FILE:1: password: a secret comes from the environment or from a file of its own, not from the configuration file",
				"FILE:2: issuers[0].secret: a secret comes from the environment or from a file of its own, not from the configuration file",
			},
		},
		{name: "a key twice", yaml: "name: x\nname: y\n", want: []string{`FILE:2: name: mapping key "name" already defined at line 1`}},
		{name: "two documents", yaml: "name: x\n---\nname: y\n", want: []string{"FILE: has more than one YAML document"}},
		{name: "no YAML", yaml: "name: [\n", want: []string{"FILE: yaml: line 1: did not find expected node content"}},
		{
			name: "variables",
			environ: []string{
				"MY_SERVICE_STORE_DNS=x", "MY_SERVICE_COUNT=many", "MY_SERVICE_DRAIN_TIMEOUT=5", "MY_SERVICE_NAMEE=x",
				"MY_SERVICE_ENABLED=", "MY_SERVICE_PORTS=1,x", "MY_SERVICE_ISSUERS=[{alas: x}]", "MY_SERVICE_STORE=x",
			},
			want: []string{
				"MY_SERVICE_COUNT: count: cannot unmarshal !!str `many` into int",
				`MY_SERVICE_DRAIN_TIMEOUT: drain_timeout: "5" is no duration with a unit, such as 500ms, 30s or 5m`,
				"MY_SERVICE_ENABLED: enabled: is empty",
				"MY_SERVICE_PORTS: ports[1]: cannot unmarshal !!str `x` into uint16",
				"MY_SERVICE_ISSUERS: issuers[0].alas: there is no such setting",
				"MY_SERVICE_NAMEE: there is no such setting",
				"MY_SERVICE_STORE: there is no such setting",
				"MY_SERVICE_STORE_DNS: there is no such setting",
			},
		},
		{
			name: "file and variables", yaml: "nme: x\n", environ: []string{"MY_SERVICE_NME=x"},
			want: []string{"FILE:1: nme: there is no such setting", "MY_SERVICE_NME: there is no such setting"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, tt.yaml, tt.environ...)
			if err == nil {
				t.Fatal("Load() = nil, want an error")
			}
			var got []string
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if i := strings.Index(line, "test.yaml"); i >= 0 {
					line = "FILE" + line[i+len("test.yaml"):]
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Load() failed with (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadWithoutTheFile(t *testing.T) {
	t.Parallel()
	cfg := defaults()
	err := config.Load(&cfg, filepath.Join(t.TempDir(), "none.yaml"), nil, "MY_SERVICE")
	if err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("Load() = %v, want an error that names the file", err)
	}
}

func TestLoadRefusesAmbiguousSettings(t *testing.T) {
	t.Parallel()
	var cfg struct {
		AB string `yaml:"a_b"`
		A  struct {
			B string `yaml:"b"`
		} `yaml:"a"`
	}
	err := config.Load(&cfg, "", nil, "X")
	if got, want := err, "settings a_b and a.b have the same variable"; got == nil || got.Error() != want {
		t.Errorf("Load() = %v, want %q", got, want)
	}
}

func TestPrintIsCompleteRedactedAndLoadable(t *testing.T) {
	t.Parallel()
	cfg := defaults()
	cfg.Issuers = []testIssuer{{Alias: "x", Secret: "hunter2"}}
	cfg.Limit = 10 * config.MiB
	var out strings.Builder
	if err := config.Print(&out, cfg); err != nil {
		t.Fatal(err)
	}
	want := `drain_timeout: 30s
name: default
count: 0
ratio: 0
enabled: false
brokers:
  - localhost:9092
ports: []
labels:
  a: "1"
issuers:
  - alias: x
    secret: '[redacted]'
limit: 10MiB
store:
  dsn: ""
  timeout: 0s
  waits: []
optional: null
password: ""
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("Print() wrote (-want +got):\n%s", diff)
	}
	again, err := load(t, strings.ReplaceAll(out.String(), "'[redacted]'", `""`))
	if err != nil {
		t.Fatalf("Load() of what Print wrote = %v", err)
	}
	cfg.Issuers[0].Secret, cfg.Ports, cfg.Store.Waits = "", []uint16{}, []time.Duration{}
	if diff := cmp.Diff(cfg, again); diff != "" {
		t.Errorf("Load() of what Print wrote gave (-want +got):\n%s", diff)
	}
}
