package session

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/outbound"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// maxParallel is how many topic filters of one packet are worked off at a time.
const maxParallel = 8

// maxReasons is how many of them the reason string of SUBACK tells.
const maxReasons = 4

// subscription is one topic filter of a session.
type subscription struct {
	session  *Session
	filter   string
	source   source
	queue    *outbound.Queue
	upstream Subscription // set once, before the subscription is in the session's map
}

var _ delivery.Sink = (*subscription)(nil)

// Deliver implements delivery.Sink.
func (sub *subscription) Deliver(deliveries []delivery.Delivery) { sub.queue.Add(deliveries) }

// Skipped implements delivery.Sink.
func (sub *subscription) Skipped(partition int32, count int64) {
	s := sub.session
	s.manager.metrics.offsetsSkipped.Add(context.Background(), count)
	s.logger.LogAttrs(context.Background(), slog.LevelWarn, "retention has overtaken a subscription",
		append(s.attributes(), slog.String("application", sub.source.application), slog.Int("partition", int(partition)),
			slog.Int64("count", count))...)
	sub.queue.Skip(partition, count)
}

// Failed implements delivery.Sink. MQTT cannot tell a client that one of its
// subscriptions ended: it has to connect, and subscribe, again.
func (sub *subscription) Failed(err *delivery.OpenError) {
	sub.session.conn.End(wire.End{
		Label: "subscription_lost", Code: wire.ImplementationSpecificError,
		Reason: "subscription " + sub.filter + " ended: " + err.Message, Err: err,
	})
}

// outcome of one topic filter.
type outcome struct {
	code   wire.Code
	reason string
	opened *subscription // its queue is opened after SUBACK
}

func refused(code wire.Code, reason string) outcome { return outcome{code: code, reason: reason} }

// Subscribe implements wire.Handler.
func (s *Session) Subscribe(p *wire.Subscribe) {
	s.work.add(func() { s.subscribe(p) }, s.run)
}

func (s *Session) subscribe(p *wire.Subscribe) {
	ctx, cancel := context.WithTimeout(s.conn.Context(), s.manager.settings.SubscribeTimeout)
	defer cancel()
	outcomes := s.subscribeAll(ctx, p)
	if s.conn.Context().Err() != nil {
		return
	}
	codes := make([]wire.Code, len(outcomes))
	var reasons []string
	for i, o := range outcomes {
		codes[i] = o.code
		s.manager.metrics.subscribed(ctx, o.code)
		if o.reason != "" && len(reasons) < maxReasons {
			if text := p.Filters[i].Filter + ": " + o.reason; !slices.Contains(reasons, text) {
				reasons = append(reasons, text)
			}
		}
	}
	// SUBACK first: clients like to know what they get before they get it.
	s.conn.Suback(p.PacketID, codes, strings.Join(reasons, "; "))
	for _, o := range outcomes {
		if o.opened != nil {
			o.opened.queue.Open(o.opened.upstream)
		}
	}
}

// subscribeAll works off the filters in parallel. A filter that occurs more than
// once counts as it occurs last, as if the packet had been several.
func (s *Session) subscribeAll(ctx context.Context, p *wire.Subscribe) []outcome {
	outcomes := make([]outcome, len(p.Filters))
	binary, problem := contentMode(p)
	last := make(map[string]int, len(p.Filters))
	for i, f := range p.Filters {
		last[f.Filter] = i
	}
	slots := make(chan struct{}, maxParallel)
	var wg sync.WaitGroup
	room := s.room()
	for i, f := range p.Filters {
		if last[f.Filter] != i {
			continue
		}
		from, code, reason := parseFilter(f.Filter)
		switch {
		case code != wire.Success:
			outcomes[i] = refused(code, reason)
			continue
		case problem != "":
			outcomes[i] = refused(wire.ImplementationSpecificError, problem)
			continue
		}
		options := outbound.Options{QoS: min(f.QoS, 1), Binary: binary, SubscriptionID: p.SubscriptionID}
		known := s.find(f.Filter)
		if known == nil {
			if room == 0 {
				outcomes[i] = refused(wire.QuotaExceeded, "too many subscriptions")
				continue
			}
			room--
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer s.recovered(ctx)
			defer func() { <-slots }()
			outcomes[i] = s.subscribeOne(ctx, f.Filter, from, options, known)
		})
	}
	wg.Wait()
	for i, f := range p.Filters {
		if j := last[f.Filter]; j != i {
			outcomes[i] = outcome{code: outcomes[j].code, reason: outcomes[j].reason}
			if !outcomes[j].code.Refused() {
				outcomes[i].code = wire.Code(min(f.QoS, 1))
			}
		}
	}
	return outcomes
}

func (s *Session) subscribeOne(ctx context.Context, filter string, from source, options outbound.Options, known *subscription) outcome {
	decision, err := s.authorize(ctx, authorizationv1.Permission_PERMISSION_READ, from)
	switch {
	case err != nil:
		return refused(wire.ImplementationSpecificError, "authorization cannot be reached")
	case !decision.Allowed:
		return refused(wire.NotAuthorized, "not authorized")
	}
	if known != nil {
		known.queue.SetOptions(options) // and its position is kept
		return outcome{code: wire.Code(options.QoS)}
	}
	sub := &subscription{
		session: s, filter: filter, source: from,
		queue: s.conn.Engine().NewQueue(from.application, options),
	}
	sub.upstream, err = s.events.Open(ctx, delivery.OpenRequest{
		Application: from.application, ShareName: from.share, Window: s.window, QoS: options.QoS, Binary: options.Binary, SubscriptionID: options.SubscriptionID,
	}, sub)
	if err != nil {
		return notOpened(ctx, err)
	}
	s.mu.Lock()
	s.subscriptions[filter] = sub
	closed := s.closed
	s.mu.Unlock()
	if !closed {
		s.manager.metrics.subscriptions.Add(ctx, 1)
	}
	// What may have changed since it was decided has called changed before the
	// application was in the map.
	s.changed() //nolint:contextcheck // outlives SUBSCRIBE, and ends with the connection
	return outcome{code: wire.Code(options.QoS), opened: sub}
}

func notOpened(ctx context.Context, err error) outcome {
	opening, ok := errors.AsType[*delivery.OpenError](err)
	switch {
	case !ok && ctx.Err() != nil:
		return refused(wire.ImplementationSpecificError, "event delivery could not be started in time")
	case !ok:
		return refused(wire.ImplementationSpecificError, "event delivery cannot be reached")
	case opening.Reason == eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED:
		return refused(wire.QuotaExceeded, opening.Message)
	case opening.Reason == eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_NO_TOPIC:
		return refused(wire.ImplementationSpecificError, "no events topic")
	default:
		return refused(wire.ImplementationSpecificError, opening.Message)
	}
}

// contentMode reads the options that user properties of SUBSCRIBE carry.
func contentMode(p *wire.Subscribe) (binary bool, problem string) {
	for _, u := range p.UserProperties {
		switch {
		case u.Name == "content-mode" && u.Value == "binary":
			binary = true
		case u.Name == "content-mode" && u.Value == "structured":
			binary = false
		case u.Name == "content-mode":
			return false, "content-mode is neither structured nor binary"
		case u.Name == "stream-offset" && u.Value != "latest", u.Name == "filter":
			return false, u.Name + " is not supported yet"
		}
	}
	return binary, ""
}

func (s *Session) find(filter string) *subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subscriptions[filter]
}

// room is how many subscriptions the session may have more.
func (s *Session) room() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.manager.settings.MaxSubscriptions-len(s.subscriptions))
}

// Unsubscribe implements wire.Handler.
func (s *Session) Unsubscribe(p *wire.Unsubscribe) {
	s.work.add(func() { s.unsubscribe(p) }, s.run)
}

// closeTimeout bounds how long UNSUBACK waits for event-fanout.
const closeTimeout = 5 * time.Second

func (s *Session) unsubscribe(p *wire.Unsubscribe) {
	ctx, cancel := context.WithTimeout(s.conn.Context(), closeTimeout)
	defer cancel()
	codes := make([]wire.Code, len(p.Filters))
	slots := make(chan struct{}, maxParallel)
	var wg sync.WaitGroup
	for i, filter := range p.Filters {
		s.mu.Lock()
		sub := s.subscriptions[filter]
		delete(s.subscriptions, filter)
		s.mu.Unlock()
		if sub == nil {
			codes[i] = wire.NoSubscriptionExisted
			continue
		}
		s.manager.metrics.subscriptions.Add(ctx, -1)
		sub.queue.Close() // from here on nothing of it is sent
		slots <- struct{}{}
		wg.Go(func() {
			defer s.recovered(ctx)
			defer func() { <-slots }()
			if err := sub.upstream.Close(ctx, true); err != nil {
				s.logger.LogAttrs(ctx, slog.LevelWarn, "closing a subscription failed",
					append(s.attributes(), slog.String("application", sub.source.application), slog.Any("error", err))...)
			}
		})
	}
	wg.Wait()
	s.conn.Unsuback(p.PacketID, codes)
}
