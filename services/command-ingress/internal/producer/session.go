package producer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// session is one sarama producer with connections of its own, from connect until it
// stops making progress.
type session struct {
	client   sarama.Client // the producer's
	admin    sarama.ClusterAdmin
	producer sarama.AsyncProducer
	dialer   *dialer
	logger   *slog.Logger

	stop   chan struct{} // closed: feed and check end
	failed chan error    // the first reason why this session is of no use any more
	once   sync.Once
}

// connect reaches Kafka, makes sure of the topic and learns its limits. When ctx
// ends it returns soon, with an error.
func (p *Producer) connect(ctx context.Context) (*session, error) {
	s := &session{
		dialer: newDialer(p.ioTimeout()), logger: p.logger,
		stop: make(chan struct{}), failed: make(chan error, 1),
	}
	abort := context.AfterFunc(ctx, s.dialer.cut)
	defer abort()
	if err := s.open(ctx, p); err != nil {
		s.cut()
		s.closeClients()
		return nil, err
	}
	if ctx.Err() != nil {
		_ = s.producer.Close()
		s.closeClients()
		return nil, ctx.Err()
	}
	return s, nil
}

// open makes the clients. Admin and producer have one each, so that neither waits
// for an answer to the other.
func (s *session) open(ctx context.Context, p *Producer) error {
	cfg, err := p.saramaConfig(s.dialer)
	if err != nil {
		return err
	}
	if err := s.openAdmin(p, *cfg); err != nil {
		return err
	}
	if err := s.ensureTopic(ctx, p); err != nil {
		return err
	}
	limit, err := s.maxMessageBytes(p.cfg.Topic)
	if err != nil {
		return err
	}
	p.setMaxMessage(limit)
	cfg.Producer.MaxMessageBytes = limit - batchOverhead
	s.client, err = sarama.NewClient(p.cfg.Kafka.Brokers, cfg)
	if err != nil {
		return explain(p.cfg.Topic, "connect", err)
	}
	if err := s.client.RefreshMetadata(p.cfg.Topic); err != nil {
		return explain(p.cfg.Topic, "look up topic", err)
	}
	s.producer, err = sarama.NewAsyncProducerFromClient(s.client)
	if err != nil {
		return explain(p.cfg.Topic, "become an idempotent producer", err)
	}
	return nil
}

// openAdmin makes the client for administration. It learns the controller by asking
// for our topic, because the admin client alone would ask for all topics.
func (s *session) openAdmin(p *Producer, cfg sarama.Config) error {
	cfg.Metadata.Retry.Max = 1
	client, err := sarama.NewClient(p.cfg.Kafka.Brokers, &cfg)
	if err != nil {
		return explain(p.cfg.Topic, "connect", err)
	}
	err = client.RefreshMetadata(p.cfg.Topic)
	if err == nil || errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		s.admin, err = sarama.NewClusterAdminFromClient(client)
	}
	if err != nil {
		_ = client.Close()
		return explain(p.cfg.Topic, "look up topic", err)
	}
	return nil
}

// The retries of sarama, with a pause of at most 1/16 of the delivery timeout, take a
// bit more than half of it: enough for a new leader, and early enough to name
// what Kafka says before the deadline only knows that it is late.
const (
	retries         = 11
	metadataRetries = 20
)

// ioTimeout bounds each exchange with a broker. It is what a connection that went
// dead without a word costs.
func (p *Producer) ioTimeout() time.Duration { return p.cfg.DeliveryTimeout * 5 / 8 }

func (p *Producer) saramaConfig(d *dialer) (*sarama.Config, error) {
	cfg, err := p.cfg.Kafka.Sarama()
	if err != nil {
		return nil, err
	}
	cfg.Net.DialTimeout, cfg.Net.ReadTimeout, cfg.Net.WriteTimeout = p.ioTimeout(), p.ioTimeout(), p.ioTimeout()
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, d
	cfg.Net.MaxOpenRequests = 1 // idempotence wants it
	// Where sarama finds no broker at all it gives up on a record at once, whatever
	// it may retry: looking for one has to be patient.
	cfg.Metadata.Retry.Max = metadataRetries
	cfg.Metadata.Retry.BackoffFunc = func(int, int) time.Duration {
		if d.isCut() {
			return 0
		}
		return p.cfg.DeliveryTimeout / 32
	}
	cfg.Metadata.Timeout = p.ioTimeout()
	cfg.Metadata.RefreshFrequency = 30 * time.Second
	cfg.Admin.Timeout = p.ioTimeout()
	cfg.Admin.Retry.Max = 1
	cfg.Producer.Idempotent = true
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Timeout = p.cfg.DeliveryTimeout / 2
	cfg.Producer.Return.Successes, cfg.Producer.Return.Errors = true, true
	cfg.Producer.Compression = p.cfg.Compression
	cfg.Producer.Partitioner = newPartitioner(p.cfg.Partitioner)
	cfg.Producer.Retry.Max = retries
	cfg.Producer.Retry.BackoffFunc = func(attempt, _ int) time.Duration {
		if d.isCut() {
			return 0
		}
		return min(50*time.Millisecond<<min(attempt, 10), p.cfg.DeliveryTimeout/16)
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return cfg, nil
}

// fail ends the session for a reason.
func (s *session) fail(err error) {
	s.once.Do(func() { s.failed <- err })
}

// feed gives sarama records until stop.
func (s *session) feed(p *Producer) {
	for {
		it := p.next(time.Now())
		if it == nil {
			select {
			case <-p.wake:
				continue
			case <-s.stop:
				return
			}
		}
		select {
		case s.producer.Input() <- &it.message:
		case <-s.stop:
			p.takeBack(it)
			return
		}
	}
}

// collect takes what sarama lets go of, until it has let go of everything.
func (s *session) collect(ctx context.Context, p *Producer) {
	successes, failures := s.producer.Successes(), s.producer.Errors()
	for successes != nil || failures != nil {
		select {
		case m, ok := <-successes:
			if !ok {
				successes = nil
				continue
			}
			p.complete(ctx, m.Metadata.(*item), Outcome{}, time.Now()) //nolint:errcheck,forcetypeassert // nobody else writes
		case e, ok := <-failures:
			if !ok {
				failures = nil
				continue
			}
			it := e.Msg.Metadata.(*item) //nolint:errcheck,forcetypeassert // nobody else writes
			outcome, endsSession := classify(e.Err, p.cfg.Topic)
			if endsSession && p.silentSince(it.sentAt) {
				s.fail(explain(p.cfg.Topic, "write", e.Err))
			}
			p.complete(ctx, it, outcome, time.Now())
		}
	}
}

// check asks Kafka for topic and limits from time to time, so that readiness tells
// the truth when there is nothing to write.
func (s *session) check(ctx context.Context, p *Producer) {
	ticker := time.NewTicker(p.cfg.CheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		limit, err := s.maxMessageBytes(p.cfg.Topic)
		if err == nil {
			err = s.ensureTopic(ctx, p)
		}
		switch {
		case s.dialer.isCut():
			return
		case err == nil && p.setMaxMessage(limit):
			s.fail(errLimits)
			return
		case err == nil:
			p.setUp()
		case p.silentSince(time.Now().Add(-p.cfg.CheckInterval)):
			f := asFailure(err)
			if p.setDown(f) {
				s.logger.WarnContext(ctx, "kafka does not answer", slog.String("kafka_topic", p.cfg.Topic), slog.Any("error", f))
			}
			// What sarama has may still be written when Kafka comes back in time.
			if f.permanent || p.nothingSent() {
				s.fail(&unused{f})
				return
			}
		}
	}
}

// cut ends all connections at once, so that nothing waits for an answer.
func (s *session) cut() {
	s.dialer.cut()
	if s.client != nil && !s.client.Closed() {
		_ = s.client.Close() // sarama gives up on what it would retry otherwise
	}
}

func (s *session) closeClients() {
	if s.client != nil && !s.client.Closed() {
		_ = s.client.Close()
	}
	if s.admin != nil {
		_ = s.admin.Close()
	}
	s.dialer.cut()
}
