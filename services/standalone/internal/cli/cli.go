package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"mqtt-integration/libs/buildinfo"
	"mqtt-integration/libs/config"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
	"mqtt-integration/services/standalone"
	"mqtt-integration/services/standalone/internal/datadir"
)

const (
	name = "standalone"
	// prefix is that of environment variables for settings.
	prefix = "STANDALONE"
)

// arguments are what kong parses. Flags that are not given are nil and leave the
// configuration alone.
type arguments struct {
	Config     string      `help:"YAML file with the configuration; see 'standalone config print'." type:"path" placeholder:"FILE"`
	DataDir    string      `help:"Where data is kept (default: $XDG_DATA_HOME/mqtt-integration, or ~/.local/share/mqtt-integration)." type:"path" placeholder:"DIR"`
	MQTTPort   *uint16     `name:"mqtt-port" help:"Port of MQTT (default 1883; 0: any free one)." placeholder:"PORT"`
	WebPort    *uint16     `name:"websocket-port" help:"Port of MQTT over WebSocket (default 8083; 0: any free one)." placeholder:"PORT"`
	KafkaPort  *uint16     `help:"Port of the embedded Kafka (default 9092; 0: any free one)." placeholder:"PORT"`
	IssuerPort *uint16     `help:"Port of the development sign-in provider (default 8180; 0: any free one)." placeholder:"PORT"`
	AdminPort  *uint16     `help:"Port of the administration API, for mqi (default 7011; 0: any free one)." placeholder:"PORT"`
	LogLevel   *slog.Level `help:"What to log, on standard error: debug, info, warn (default) or error." placeholder:"LEVEL"`

	Run struct{} `cmd:"" default:"1" help:"Run everything until Ctrl-C (default)."`

	ConfigCommand struct {
		Print struct{} `cmd:"" help:"Print the configuration that is in force, without secrets."`
		Check struct{} `cmd:"" help:"Check the configuration."`
	} `cmd:"" name:"config" help:"Look at the configuration."`

	Version struct{} `cmd:"" help:"Print the version."`
}

const description = `The whole MQTT integration for Kafka in one process, for trying it out: the four services, an emulated Kafka, a development sign-in provider and a simulated device. It listens on loopback only.

Every setting can also come from the environment: ` + prefix + `_ and its path, such as ` + prefix + `_KAFKA_BROKERS.`

// Main runs the command and returns its exit code.
func Main(args, environ []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			_, _ = fmt.Fprintf(stderr, "%s: %s\n", name, line)
		}
		return 1
	}
	var a arguments
	exited := -1
	parser, err := kong.New(&a, kong.Name(name), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }))
	if err != nil {
		return fail(err)
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		return fail(err)
	}
	if parsed.Command() == "version" {
		_, _ = fmt.Fprintln(stdout, buildinfo.Version())
		return 0
	}
	cfg, err := a.load(environ)
	if err != nil {
		return fail(err)
	}
	switch parsed.Command() {
	case "config print":
		if err := config.Print(stdout, cfg); err != nil {
			return fail(err)
		}
		return 0
	case "config check":
		if err := cfg.Validate(); err != nil {
			return fail(err)
		}
		_, _ = fmt.Fprintln(stdout, "the configuration is valid")
		return 0
	}
	if err := run(cfg, stdout, stderr); err != nil {
		return fail(explain(err))
	}
	return 0
}

// explain adds what to do about an error that users meet.
func explain(err error) error {
	if errors.Is(err, datadir.ErrInUse) {
		return fmt.Errorf("%w: end that one, or choose another directory with --data-dir", err)
	}
	return err
}

// load puts file, environment and flags over the defaults.
func (a arguments) load(environ []string) (standalone.Config, error) {
	cfg := standalone.DefaultConfig()
	if err := config.Load(&cfg, a.Config, environ, prefix); err != nil {
		return cfg, err
	}
	if a.DataDir != "" {
		cfg.DataDir = a.DataDir
	}
	if cfg.DataDir == "" {
		var err error
		if cfg.DataDir, err = datadir.Default(lookup(environ)); err != nil {
			return cfg, err
		}
	}
	for _, p := range []struct {
		port    *uint16
		address *string
	}{
		{a.MQTTPort, listener(&cfg, a.MQTTPort, mqttfrontend.TransportTCP)},
		{a.WebPort, listener(&cfg, a.WebPort, mqttfrontend.TransportWebSocket)},
		{a.KafkaPort, &cfg.Kafka.Embedded.Address},
		{a.IssuerPort, &cfg.Issuer.Address},
		{a.AdminPort, &cfg.Authorization.AdminAPI.Address},
	} {
		if p.port == nil {
			continue
		}
		host, _, err := net.SplitHostPort(*p.address)
		if err != nil {
			host = "127.0.0.1"
		}
		*p.address = net.JoinHostPort(host, strconv.Itoa(int(*p.port)))
	}
	if a.LogLevel != nil {
		cfg.Log.Level = *a.LogLevel
	}
	return cfg, nil
}

// listener is the address of the first listener of a transport. One is added where
// a port is asked for and there is none.
func listener(cfg *standalone.Config, port *uint16, transport string) *string {
	if port == nil {
		return nil
	}
	list := &cfg.MQTTFrontend.Listeners
	at := slices.IndexFunc(*list, func(l mqttfrontend.ListenerConfig) bool {
		return cmp.Or(l.Transport, mqttfrontend.TransportTCP) == transport
	})
	if at < 0 {
		at = len(*list)
		*list = append(*list, mqttfrontend.ListenerConfig{Transport: transport})
	}
	return &(*list)[at].Address
}

func lookup(environ []string) func(string) string {
	return func(variable string) string {
		for _, e := range environ {
			if value, ok := strings.CutPrefix(e, variable+"="); ok {
				return value
			}
		}
		return ""
	}
}

// run runs everything until a signal comes. A second one ends the process as if
// nobody had caught it.
func run(cfg standalone.Config, stdout, stderr io.Writer) error {
	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer release()
	stopping := context.AfterFunc(ctx, func() {
		release()
		_, _ = fmt.Fprintln(stdout, "\nStopping …")
	})
	defer stopping()

	began := time.Now()
	_, _ = fmt.Fprintf(stdout, "The MQTT integration, version %s. Data: %s\n", buildinfo.Version(), cfg.DataDir)
	err := standalone.Run(ctx, cfg, standalone.Options{
		Logger:   newLogger(stderr, cfg),
		Progress: func(text string) { _, _ = fmt.Fprintf(stdout, "  %s …\n", text) },
		Ready: func(s *standalone.System) {
			_, _ = fmt.Fprintf(stdout, "Ready after %.1f s.\n\n%s", time.Since(began).Seconds(), banner(cfg, s))
		},
	})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(stdout, "Stopped.")
	return nil
}

func newLogger(w io.Writer, cfg standalone.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Log.Level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
