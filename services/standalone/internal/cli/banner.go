package cli

import (
	"fmt"
	"net"
	"strings"

	"mqtt-integration/libs/naming"
	"mqtt-integration/services/standalone"
)

// The programs that people have.
const (
	subscribe = "mosquitto_sub"
	publish   = "mosquitto_pub"
)

// banner is what there is to know and to paste once everything runs.
func banner(cfg standalone.Config, s *standalone.System) string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	at := s.Addresses()

	if cfg.EmbedsKafka() {
		line("The Kafka in here is an emulation for trying things out, not for production.")
	}
	line("Everything listens on this machine only:")
	line("")
	line("  MQTT            %s", at.MQTT)
	if at.WebSocket != "" {
		line("  over WebSocket  ws://%s/mqtt", at.WebSocket)
	}
	line("  Kafka           %s", strings.Join(at.Kafka, ","))
	if at.Issuer != "" {
		line("  sign-in (OIDC)  %s", at.Issuer)
	}
	line("  administration  %s", at.AuthorizationAdmin)
	line("")
	if demo := s.Demonstration(); demo.User != "" {
		demonstration(line, cfg, at, demo)
	}
	line("Ctrl-C ends it; the next start goes on with the same data.")
	return b.String()
}

func demonstration(line func(string, ...any), cfg standalone.Config, at standalone.Addresses, demo standalone.Demonstration) {
	host, port, _ := net.SplitHostPort(at.MQTT) // It has listened there.
	server := "-h " + host + " -p " + port
	user := server + " -u " + demo.User + " -P " + demo.APIKey
	events := "-t " + quote("app/"+demo.Application)
	command := func(name string) string {
		return "-t " + quote("command/"+demo.Application+"/"+demo.Device+"/"+name)
	}

	line("User %s owns the application %s and has this API key (kept in %s):", demo.User, demo.Application, demo.KeyFile)
	line("")
	line("  %s", demo.APIKey)
	line("")
	line("Paste into another terminal. What %s sends arrives every %v:", demo.Device, cfg.Demo.Interval)
	line("")
	line("  # MQTT 3.1.1")
	line("  %s %s -q 1 %s", subscribe, user, events)
	line("  # MQTT 5")
	line("  %s -V 5 %s -q 1 %s", subscribe, user, events)
	line("  # MQTT 5, binary mode: the payload is the data, the attributes are user properties")
	line("  %s -V 5 %s -q 1 %s -D subscribe user-property content-mode binary -F '%%P\\n%%p\\n'", subscribe, user, events)
	line("  # anonymous: everyone may read this application")
	line("  %s %s %s", subscribe, server, events)
	line("")
	line("Send a command, and see in a subscription how the device reacts:")
	line("")
	line("  %s %s -q 1 %s -m '{\"on\":true}'", publish, user, command("set-led"))
	line("  %s %s -q 1 %s -m '{\"seconds\":5}'", publish, user, command("set-interval"))
	line("  %s %s -q 1 %s -n", publish, user, command("reboot"))
	line("")
	line("With an access token, valid for %v, in the place of name and key:", cfg.Issuer.TokenLifetime)
	line("")
	line("  TOKEN=$(curl -s %s -d grant_type=password -d client_id=%s -d username=%s \\", demo.TokenURL, demo.ClientID, demo.User)
	line("    -d \"password=$(cat %s)\" | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')", quote(demo.PasswordFile))
	line("  %s %s -u \"$TOKEN\" -q 1 %s", subscribe, server, events)
	line("")
	line("Administer it, from the root of the repository (mqi --help says what else there is):")
	line("")
	line("  go run ./services/mqi/cmd/mqi --server %s --user %s --api-key-file %s app list", at.AuthorizationAdmin, demo.User, quote(demo.KeyFile))
	line("")
	line("Look into Kafka, with any client:")
	line("")
	line("  kcat -q -b %s -C -t %s -o -3 -f '%%h\\n%%s\\n'", strings.Join(at.Kafka, ","), naming.EventsTopic(demo.Application))
	line("  kcat -q -b %s -C -t %s -o beginning -f '%%h\\n%%s\\n'", strings.Join(at.Kafka, ","), cfg.CommandIngress.Commands.Topic)
	line("")
}

// quote makes text one word of a shell.
func quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@,", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
