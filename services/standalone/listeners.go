package standalone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// InUseError says that the port is taken that something should listen on.
type InUseError struct {
	// What would listen there, in words for people.
	What string
	// Address is host:port.
	Address string
	// Setting is the path of the setting in the configuration.
	Setting string
	// Flag is the flag of the command that changes it.
	Flag string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is in use, so %s cannot listen there: choose another port with %s (or %s in the configuration)",
		e.Address, e.What, e.Flag, e.Setting)
}

// place is something that listens.
type place struct{ what, setting, flag string }

var (
	placeMQTT   = place{"MQTT", "mqtt_frontend.listeners", "--mqtt-port"}
	placeWeb    = place{"MQTT over WebSocket", "mqtt_frontend.listeners", "--websocket-port"}
	placeKafka  = place{"the embedded Kafka", "kafka.embedded.address", "--kafka-port"}
	placeIssuer = place{"the development issuer", "issuer.address", "--issuer-port"}
	placeAdmin  = place{"administration", "authorization.admin_api.address", "--admin-port"}
)

// inUse makes an error about a port that is taken one that says what to do.
func (p place) inUse(address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return &InUseError{What: p.what, Address: address, Setting: p.setting, Flag: p.flag}
	}
	return err
}

// listeners are bound before anything starts, so that every address is known,
// and a port in use is an error before anything has happened.
type listeners struct {
	mu    sync.Mutex
	bound map[string]net.Listener
}

func (l *listeners) bind(ctx context.Context, p place, address string) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return "", p.inUse(address, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bound == nil {
		l.bound = map[string]net.Listener{}
	}
	at := listener.Addr().String()
	l.bound[at] = listener
	return at, nil
}

// listen is for daemon.Env: it hands out what was bound, once.
func (l *listeners) listen(ctx context.Context, network, address string) (net.Listener, error) {
	l.mu.Lock()
	listener, ok := l.bound[address]
	delete(l.bound, address)
	l.mu.Unlock()
	if ok {
		return listener, nil
	}
	if err := loopback("listen", address); err != nil {
		return nil, err
	}
	return new(net.ListenConfig).Listen(ctx, network, address)
}

// close closes what nobody took.
func (l *listeners) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, listener := range l.bound {
		_ = listener.Close()
	}
	clear(l.bound)
}
