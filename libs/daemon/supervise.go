package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"mqtt-integration/libs/buildinfo"
	"mqtt-integration/libs/telemetry"
)

var errDraining = errors.New("stopping")

// telemetryTimeout bounds the last flush of traces.
const telemetryTimeout = 3 * time.Second

// supervise runs the service between the set-up of its process and the end of
// it, and gives up on a service that does not end.
func (p process) supervise(common Common, logger *slog.Logger, run func(context.Context, Env) error) (err error) {
	// The context of Run ends by us, below, in due order.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)

	telemetry.LogErrors(logger)
	service := telemetry.Service{Name: p.name, Version: buildinfo.Version(), Instance: uuid.NewString()}
	providers, err := telemetry.Setup(ctx, service, p.environ)
	if err != nil {
		return err
	}
	defer func() {
		flush, stop := context.WithTimeout(context.WithoutCancel(ctx), telemetryTimeout)
		defer stop()
		if flushErr := providers.Shutdown(flush); flushErr != nil {
			logger.Warn("telemetry not flushed", slog.Any("error", flushErr))
		}
	}()

	env := Env{
		Logger: logger, Health: &Health{},
		Meter: providers.Meter, Tracer: providers.Tracer, Propagator: providers.Propagator,
	}.Complete()
	lifecycle := env.Health.Register("lifecycle")

	if common.Admin.Address != "" {
		admin, adminErr := startAdmin(ctx, common.Admin, env, providers.Metrics, func(err error) { cancel(err) })
		if adminErr != nil {
			return adminErr
		}
		defer admin.stop()
	}

	logger.Info("starting",
		slog.String("version", buildinfo.Version()), slog.String("revision", buildinfo.Revision()),
		slog.String("admin_address", common.Admin.Address))
	done := make(chan error, 1)
	// Buffered: a service that comes back after we gave up must not hang here.
	go func() { done <- run(ctx, env) }()
	lifecycle.Set(nil)

	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// The administration server died under us.
	case sig := <-p.signals:
		logger.Info("stopping", slog.String("signal", sig.String()),
			slog.Duration("drain_delay", common.DrainDelay), slog.Duration("drain_timeout", common.DrainTimeout))
	}
	lifecycle.Set(errDraining)
	return p.drain(common, done, cancel, context.Cause(ctx))
}

// drain ends the context of Run after the delay and waits for Run, within
// bounds. It returns cause, if there is one, beside what Run returned.
func (p process) drain(common Common, done <-chan error, cancel context.CancelCauseFunc, cause error) error {
	wait := common.DrainDelay
	if cause != nil {
		wait = 0 // the context of Run has ended already
	}
	delay := time.NewTimer(wait)
	defer delay.Stop()
	select {
	case <-delay.C:
	case err := <-done:
		return errors.Join(cause, err)
	case sig := <-p.signals:
		return &signalError{signal: sig}
	}
	cancel(nil)

	limit := time.NewTimer(common.DrainTimeout + exitGrace)
	defer limit.Stop()
	select {
	case err := <-done:
		return errors.Join(cause, err)
	case sig := <-p.signals:
		return &signalError{signal: sig}
	case <-limit.C:
		return errors.Join(cause, fmt.Errorf("not stopped %v after drain_timeout (%v)", exitGrace, common.DrainTimeout))
	}
}
