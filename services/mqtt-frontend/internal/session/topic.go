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

// parseFilter reads app/<application>. Any other filter has a reason code.
func parseFilter(filter string) (application string, code wire.Code, reason string) {
	topic := filter
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		name, shared, ok := strings.Cut(rest, "/")
		if !ok || name == "" || shared == "" || strings.ContainsAny(name, "+#") {
			return "", wire.TopicFilterInvalid, "no share name"
		}
		topic = shared
	}
	switch {
	case strings.ContainsAny(topic, "+#"):
		if !legalWildcards(topic) {
			return "", wire.TopicFilterInvalid, "wildcard in the wrong place"
		}
		return "", wire.WildcardNotSupported, "wildcards are not supported"
	case !strings.HasPrefix(topic, "app/"):
		return "", wire.TopicFilterInvalid, "not app/<application>"
	}
	application = topic[len("app/"):]
	if err := naming.ValidateApplication(application); err != nil {
		return "", wire.TopicFilterInvalid, "not app/<application>"
	}
	if len(topic) != len(filter) {
		return "", wire.SharedNotSupported, "shared subscriptions are not supported yet"
	}
	return application, wire.Success, ""
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
