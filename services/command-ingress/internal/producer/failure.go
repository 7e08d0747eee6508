package producer

import (
	"errors"
	"fmt"
	"net"

	"github.com/IBM/sarama"
)

// failure is why Kafka does not take records.
type failure struct {
	// public is text that an MQTT client may see: no addresses.
	public string
	// permanent: it will not go away by waiting a few seconds.
	permanent bool
	cause     error
}

// Error implements error, with all there is to know.
func (f *failure) Error() string {
	if f.cause == nil {
		return f.public
	}
	return f.public + ": " + f.cause.Error()
}

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.cause }

var (
	errNotConnected = &failure{public: "Kafka has not been reached yet"}
	errStalled      = &failure{public: "Kafka does not answer"}
	errStopping     = &failure{public: "command-ingress is stopping", permanent: true}
)

// errLimits ends a session in order: the next one has the new limits.
var errLimits = errors.New("limits of the topic have changed")

// unused ends a session in order, too: sarama has nothing that it could lose.
type unused struct{ *failure }

// Unwrap returns the failure.
func (u *unused) Unwrap() error { return u.failure }

// inOrder says whether a session that ends for this reason may finish first.
func inOrder(err error) bool {
	_, ok := errors.AsType[*unused](err)
	return err == nil || ok || errors.Is(err, errLimits)
}

func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{public: "Kafka cannot be used", cause: err}
}

// explain names what is wrong when something was done to a topic.
func explain(topic, doing string, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	cause := fmt.Errorf("%s: %w", doing, err)
	var netError net.Error
	switch {
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition):
		return &failure{public: "Kafka has no topic " + topic, permanent: true, cause: cause}
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed), errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		return &failure{public: "Kafka does not allow command-ingress to write to topic " + topic, permanent: true, cause: cause}
	case errors.Is(err, sarama.ErrSASLAuthenticationFailed):
		return &failure{public: "Kafka does not accept the credentials of command-ingress", permanent: true, cause: cause}
	case errors.Is(err, sarama.ErrOutOfBrokers), errors.As(err, &netError):
		return &failure{public: "Kafka cannot be reached", cause: cause}
	default:
		return &failure{public: "Kafka cannot be used", cause: cause}
	}
}

// classify turns what sarama says about a record into its outcome. It also says
// whether the session is of no use any more, should nothing else get through.
//
// sarama does not tell whether a record was ever sent. Only what a broker says
// before it appends proves that Kafka does not have it.
func classify(err error, topic string) (outcome Outcome, endsSession bool) {
	var tooLarge sarama.ConfigurationError
	switch {
	case errors.Is(err, sarama.ErrMessageSizeTooLarge), errors.As(err, &tooLarge):
		return Outcome{TooLarge, "command is larger than Kafka takes"}, false
	case errors.Is(err, sarama.ErrNotEnoughReplicas):
		return Outcome{Unavailable, "Kafka has not enough in-sync replicas of topic " + topic}, false
	case errors.Is(err, sarama.ErrNotEnoughReplicasAfterAppend):
		return Outcome{Unknown, "Kafka has not enough in-sync replicas of topic " + topic + ", outcome unknown"}, false
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition), errors.Is(err, sarama.ErrTopicAuthorizationFailed),
		errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		return Outcome{Unavailable, explain(topic, "write", err).public}, true
	case errors.Is(err, sarama.ErrInvalidRecord):
		return Outcome{Unavailable, "Kafka refuses the record"}, false
	case errors.Is(err, sarama.ErrKafkaStorageError), errors.Is(err, sarama.ErrRequestTimedOut):
		return Outcome{Unknown, "Kafka did not store the command in time, outcome unknown"}, false
	default:
		return Outcome{Unknown, "Kafka could not be reached, outcome unknown"}, true
	}
}
