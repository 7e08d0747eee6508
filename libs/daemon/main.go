package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"mqtt-integration/libs/buildinfo"
	"mqtt-integration/libs/config"
)

// exitGrace is how long after drain_timeout the process still waits for Run.
const exitGrace = 5 * time.Second

// Main is the main function of the service called name, which is lower case with
// dashes ("mqtt-frontend"). It returns the exit code: 0 after an orderly stop, 1
// when the configuration is bad or run failed, 2 for a mistake in the command
// line, 128 and the number of the signal when a second signal ended it.
//
// Configuration comes from defaults, the file of --config and the variables that
// start with the upper-case name (MQTT_FRONTEND_LOG_LEVEL for log.level).
//
// run gets a context that ends with SIGTERM or SIGINT (after drain_delay), and
// has drain_timeout to come back then. Main stops waiting 5 s later.
func Main[C Configuration](name string, defaults func() C, run func(context.Context, C, Env) error) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	p := process{
		name: name, args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr, signals: signals,
	}
	return mainOf(p, defaults, run)
}

// process is what Main takes from the operating system.
type process struct {
	name    string
	args    []string
	environ []string
	stdout  io.Writer
	stderr  io.Writer
	signals <-chan os.Signal
}

// prefix is what the names of the service's variables start with.
func (p process) prefix() string {
	return strings.ToUpper(strings.ReplaceAll(p.name, "-", "_"))
}

// commandLine is the command line of every service, for kong.
type commandLine struct {
	Config   string      `short:"c" type:"path" placeholder:"FILE" help:"YAML configuration file. Without it there are only defaults and variables. Also: ${prefix}_CONFIG."`
	LogLevel *slog.Level `placeholder:"LEVEL" help:"debug, info, warn or error, instead of the configuration's log.level."`

	Serve     struct{} `cmd:"" default:"1" help:"Run the service (default)."`
	ConfigCmd struct {
		Check struct{} `cmd:"" help:"Say what is wrong with the configuration."`
		Print struct{} `cmd:"" help:"Print the configuration in effect, without secrets."`
	} `cmd:"" name:"config" help:"Look at the configuration."`
	Health  struct{} `cmd:"" help:"Ask the running service on this machine whether it is ready."`
	Version struct{} `cmd:"" help:"Print the version."`
}

func mainOf[C Configuration](p process, defaults func() C, run func(context.Context, C, Env) error) int {
	var cli commandLine
	exited := -1 // set when kong has done all there is to do, as for --help
	parser, err := kong.New(&cli, kong.Name(p.name), kong.Writers(p.stdout, p.stderr),
		kong.Exit(func(code int) { exited = code }), kong.Vars{"prefix": p.prefix()},
		kong.Description("Part of the MQTT integration. Every setting of the configuration can also be given as a variable: "+
			"log.level as "+p.prefix()+"_LOG_LEVEL."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		return p.fail(err)
	}
	kctx, err := parser.Parse(p.args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		_ = p.fail(err)
		return 2
	}
	if kctx.Command() == "version" {
		_, _ = fmt.Fprintf(p.stdout, "%s %s (%s)\n", p.name, buildinfo.Version(), buildinfo.Revision())
		return 0
	}

	cfg := defaults()
	if err := p.load(&cli, func(path string, environ []string) error {
		return config.Load(&cfg, path, environ, p.prefix())
	}); err != nil {
		return p.fail(err)
	}
	// health needs the address of the administration port only, and print is for
	// finding out what is wrong.
	switch kctx.Command() {
	case "config print":
		if err := config.Print(p.stdout, cfg); err != nil {
			return p.fail(err)
		}
		return 0
	case "health":
		if err := askReady(context.Background(), cfg.DaemonConfig().Admin.Address); err != nil {
			return p.fail(err)
		}
		return 0
	}
	if err := cfg.Validate(); err != nil {
		return p.fail(err)
	}
	if kctx.Command() == "config check" {
		_, _ = fmt.Fprintln(p.stdout, "the configuration is valid")
		return 0
	}
	common := cfg.DaemonConfig()
	if cli.LogLevel != nil {
		common.Log.Level = *cli.LogLevel
	}
	return p.serve(common, func(ctx context.Context, env Env) error { return run(ctx, cfg, env) })
}

// load finds the file, and keeps the variable that names it from being taken
// for a setting.
func (p process) load(cli *commandLine, load func(path string, environ []string) error) error {
	path := cli.Config
	var environ []string
	for _, variable := range p.environ {
		if value, ok := strings.CutPrefix(variable, p.prefix()+"_CONFIG="); ok {
			if path == "" {
				path = value
			}
			continue
		}
		environ = append(environ, variable)
	}
	return load(path, environ)
}

// fail prints every part of a joined error on a line of its own.
func (p process) fail(err error) int {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		_, _ = fmt.Fprintf(p.stderr, "%s: %s\n", p.name, line)
	}
	return 1
}

func (p process) serve(common Common, run func(context.Context, Env) error) int {
	logger := newLogger(p.stderr, common.Log).With(slog.String("service", p.name))
	err := p.supervise(common, logger, run)
	if stopped, ok := errors.AsType[*signalError](err); ok {
		logger.Warn("stopped at once by a second signal", slog.String("signal", stopped.signal.String()))
		return stopped.code()
	}
	if err != nil {
		logger.Error("stopped with an error", slog.Any("error", err))
		return 1
	}
	logger.Info("stopped")
	return 0
}

func newLogger(w io.Writer, cfg LogConfig) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// signalError is a second signal, by which an operator ends the process without
// waiting for anything.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string { return "second signal: " + e.signal.String() }

func (e *signalError) code() int {
	if number, ok := e.signal.(syscall.Signal); ok {
		return 128 + int(number)
	}
	return 1
}
