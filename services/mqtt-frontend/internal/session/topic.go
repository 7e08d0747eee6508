package session

import (
	"strings"

	"mqtt-integration/libs/naming"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// commandTarget is what the topic of a command names.
type commandTarget struct{ application, device, command string }

// parseCommandTopic reads command/<application>/<device>/<command>.
func parseCommandTopic(topic string) (commandTarget, bool) {
	rest, ok := strings.CutPrefix(topic, "command/")
	if !ok {
		return commandTarget{}, false
	}
	application, rest, _ := strings.Cut(rest, "/")
	device, command, _ := strings.Cut(rest, "/")
	if device == "" || command == "" || strings.Contains(command, "/") || naming.ValidateApplication(application) != nil {
		return commandTarget{}, false
	}
	return commandTarget{application: application, device: device, command: command}, true
}

// source is what a topic filter names.
type source struct {
	application string
	share       string // share name; empty: the session's own subscription
}

// parseFilter reads app/<application> and $share/<group>/app/<application>. Any
// other filter has a reason code.
func parseFilter(filter string) (from source, code wire.Code, reason string) {
	topic := filter
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		from.share, topic, _ = strings.Cut(rest, "/")
		if topic == "" || naming.ValidateShare(from.share) != nil {
			return source{}, wire.TopicFilterInvalid, "no legal share name"
		}
	}
	switch {
	case strings.ContainsAny(topic, "+#"):
		if !legalWildcards(topic) {
			return source{}, wire.TopicFilterInvalid, "wildcard in the wrong place"
		}
		return source{}, wire.WildcardNotSupported, "wildcards are not supported"
	case !strings.HasPrefix(topic, "app/"):
		return source{}, wire.TopicFilterInvalid, "not app/<application>"
	}
	from.application = topic[len("app/"):]
	if err := naming.ValidateApplication(from.application); err != nil {
		return source{}, wire.TopicFilterInvalid, "not app/<application>"
	}
	return from, wire.Success, ""
}

// legalWildcards reports whether + and # stand where MQTT allows them.
func legalWildcards(filter string) bool {
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if len(level) > 1 && strings.ContainsAny(level, "+#") || level == "#" && i < len(levels)-1 {
			return false
		}
	}
	return true
}
