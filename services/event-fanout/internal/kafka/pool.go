package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/IBM/sarama"
)

var errClosed = errors.New("closed")

// pool has at most size connections to each broker. A connection carries one
// request at a time.
type pool struct {
	conf *sarama.Config
	size int

	mu      sync.Mutex
	closed  bool
	brokers map[string]chan *sarama.Broker // size tokens: nil is a connection that is not there yet
}

func newPool(conf *sarama.Config, size int) *pool {
	return &pool{conf: conf, size: size, brokers: map[string]chan *sarama.Broker{}}
}

func (p *pool) tokens(address string) (chan *sarama.Broker, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	tokens := p.brokers[address]
	if tokens == nil {
		tokens = make(chan *sarama.Broker, p.size)
		for range p.size {
			tokens <- nil
		}
		p.brokers[address] = tokens
	}
	return tokens, nil
}

// do calls f with a connection to a broker. An error of f that is no
// brokerError closes the connection.
func (p *pool) do(ctx context.Context, address string, f func(*sarama.Broker) error) error {
	tokens, err := p.tokens(address)
	if err != nil {
		return classify(err)
	}
	var broker *sarama.Broker
	select {
	case broker = <-tokens:
	case <-ctx.Done():
		return classify(fmt.Errorf("wait for a connection to %s: %w", address, ctx.Err()))
	}
	fresh := broker == nil
	if fresh {
		if broker, err = p.connect(address); err != nil {
			tokens <- nil
			return classify(err)
		}
	}
	err = f(broker)
	var fault brokerError
	if err == nil || errors.As(err, &fault) {
		tokens <- broker
		return classify(err)
	}
	_ = broker.Close() // it is broken already
	tokens <- nil
	if !fresh && ctx.Err() == nil {
		// Brokers close idle connections, and those that they had before a restart.
		return p.do(ctx, address, f)
	}
	return classify(err)
}

func (p *pool) connect(address string) (*sarama.Broker, error) {
	broker := sarama.NewBroker(address)
	if err := broker.Open(p.conf); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	// Open returns before there is a connection.
	if _, err := broker.Connected(); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return broker, nil
}

// close waits for the requests in flight.
func (p *pool) close() {
	p.mu.Lock()
	brokers := p.brokers
	p.brokers, p.closed = nil, true
	p.mu.Unlock()
	for _, tokens := range brokers {
		for range p.size {
			if broker := <-tokens; broker != nil {
				_ = broker.Close() // nothing depends on it any more
			}
		}
	}
}
