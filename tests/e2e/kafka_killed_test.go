//go:build e2e

package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
)

// broker is a Kafka of a test's own, as a process that can be killed.
type broker struct {
	addresses   []string
	kill, start func()
}

// newBroker starts an Apache Kafka with TEST_KAFKA=real, else the emulation.
func newBroker(t *testing.T) *broker {
	t.Helper()
	if os.Getenv("TEST_KAFKA") == "real" {
		return newApacheKafka(t)
	}
	return newKafkaEmulation(t)
}

// newApacheKafka starts one by the script for it.
func newApacheKafka(t *testing.T) *broker {
	t.Helper()
	cmd := exec.Command(filepath.Join("..", "kafka", "killable"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	t.Cleanup(func() {
		_ = stdin.Close() // ends it, and removes its data
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
	})
	answer := func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("Apache Kafka has ended: %v", lines.Err())
		}
		return lines.Text()
	}
	say := func(word string) {
		t.Helper()
		if _, err := io.WriteString(stdin, word+"\n"); err != nil {
			t.Fatal(err)
		}
		if got := answer(); got != word {
			t.Fatalf("%q was answered with %q", word, got)
		}
	}
	for _, service := range services {
		binary(t, service) // It is built while Kafka starts.
	}
	return &broker{addresses: []string{answer()}, kill: func() { say("kill") }, start: func() { say("start") }}
}

// emulationVariable has the address and the directory of the emulation that this
// program is to be instead of tests.
const emulationVariable = "E2E_KAFKA_EMULATION"

// newKafkaEmulation starts the emulation, in a process that is this program.
func newKafkaEmulation(t *testing.T) *broker {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address, dir := freePorts(t, "kafka")["kafka"], t.TempDir()
	var p *process
	b := &broker{addresses: []string{address}}
	b.start = func() {
		p = start(t, command{path: program, env: []string{emulationVariable + "=" + address + " " + dir}})
		p.line(t, "address", containing(address))
	}
	b.kill = func() {
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
	}
	b.start()
	return b
}

// emulateKafka is what the program does with emulationVariable, until it is killed.
func emulateKafka(where string) {
	var cfg embeddedkafka.Config
	if _, err := fmt.Sscan(where, &cfg.Address, &cfg.Dir); err != nil {
		panic(fmt.Errorf("%s=%q: %w", emulationVariable, where, err))
	}
	cluster, err := embeddedkafka.Start(cfg)
	if err != nil {
		panic(err)
	}
	if _, err := fmt.Fprintln(os.Stdout, cluster.Brokers()[0]); err != nil {
		panic(err)
	}
	select {}
}

// outage is how long Kafka is away, at least: longer than its clients try at once.
const outage = 3 * time.Second

// When the Kafka broker is killed under load and comes back, no connection ends, no
// event is lost, every acknowledged command is there, and everything goes on.
func TestKafkaIsKilled(t *testing.T) {
	t.Parallel()
	kafka := newBroker(t)
	c, acc := deployClusterOn(t, kafka.addresses)
	own := newCollection("own subscription")
	subscribeInto(t, c.addresses["mqtt"], acc, "app/"+acc.application, own)
	groups := newShareGroups()
	joinGroups(t, c.addresses["mqtt"], acc, groups)
	joinGroups(t, c.addresses["mqtt"], acc, groups)
	load := startLoad(t, c.brokers, acc.topic)
	const devices = 4
	commands := startCommanders(t, acc, devices, c.addresses["mqtt"])
	load.goesOn(t, 800) // enough to be committed now and then
	commands.goOn(t, 200)

	kafka.kill()
	sent := load.sent()
	<-time.After(outage)
	kafka.start()
	began := time.Now()
	t.Logf("Kafka was killed after %d events", sent)
	load.goesOn(t, 200)
	t.Logf("events are written after %v", time.Since(began).Round(time.Millisecond))
	commands.goOn(t, 200)
	t.Logf("commands are acknowledged after %v", time.Since(began).Round(time.Millisecond))
	sent = load.sent()
	own.hasAll(t, 0, sent)
	t.Logf("own subscriptions have everything after %v", time.Since(began).Round(time.Millisecond))
	for _, group := range groups {
		group.hasAll(t, 0, sent)
	}
	t.Logf("share groups have everything after %v", time.Since(began).Round(time.Millisecond))

	load.stop()
	commands.stop()
	log := testkit.ReadAll(t, c.brokers, acc.topic)
	own.wantLog(t, log, nil)
	for _, group := range groups {
		group.hasAll(t, 0, load.sent())
		wantCommitted(t, c, acc, group)
		group.wantNoDisconnect(t)
		t.Logf("%s: %d events, %d of them again", group.name, load.sent(), group.copies())
	}
	own.wantNoDisconnect(t)
	copies := commands.wantInKafka(t, acc, testkit.ReadAll(t, c.brokers, c.commands))
	if commands.connections != devices {
		t.Errorf("clients that send commands connected %d times, want %d", commands.connections, devices)
	}
	t.Logf("%d commands acknowledged, %d refused, and %d copies; %d events in Kafka",
		commands.total(), commands.refused, copies, len(log))
	for _, instance := range instances {
		select {
		case <-c.processes[instance].ended:
			t.Errorf("%s has ended", instance)
		default:
		}
	}
}
