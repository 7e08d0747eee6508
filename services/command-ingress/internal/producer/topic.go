package producer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/IBM/sarama"
)

const (
	// defaultMaxMessage is message.max.bytes of Kafka's own defaults, for brokers
	// that do not let us ask.
	defaultMaxMessage = 1048588
	// batchOverhead is what sarama does not count of a batch: the difference between
	// its idea of a batch's header and the header.
	batchOverhead = 12
	// recordOverhead is what a record of 50 headers can have besides key, value and
	// headers, generously, with the header of its batch.
	recordOverhead = 640
)

// maxRecordBytes is the largest sum of key, value and headers that fits into a
// batch of maxMessage bytes, capped.
func maxRecordBytes(maxMessage, limit int) int {
	return max(min(maxMessage-recordOverhead, limit), 0)
}

// ensureTopic makes sure that the topic exists, and creates it where that is
// configured.
func (s *session) ensureTopic(ctx context.Context, p *Producer) error {
	topic := p.cfg.Topic
	found, err := s.admin.DescribeTopics([]string{topic})
	if err != nil {
		return explain(topic, "describe topic", err)
	}
	if len(found) != 1 {
		return explain(topic, "describe topic", fmt.Errorf("%d topics in the answer", len(found)))
	}
	switch err := found[0].Err; {
	case errors.Is(err, sarama.ErrNoError):
		return nil
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition) && p.cfg.CreatePartitions > 0:
	default:
		return explain(topic, "describe topic", err)
	}
	detail := &sarama.TopicDetail{NumPartitions: p.cfg.CreatePartitions, ReplicationFactor: p.cfg.CreateReplication}
	if detail.ReplicationFactor == 0 {
		detail.ReplicationFactor = -1
	}
	if err := s.admin.CreateTopic(topic, detail, false); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return &failure{public: "Kafka has no topic " + topic, cause: fmt.Errorf("create topic: %w", err)}
	}
	s.logger.InfoContext(ctx, "kafka topic created", slog.String("kafka_topic", topic), slog.Int("partitions", int(p.cfg.CreatePartitions)))
	return nil
}

// maxMessageBytes is max.message.bytes of the topic, which has the broker's value
// when it has none of its own.
func (s *session) maxMessageBytes(topic string) (int, error) {
	const doing = "describe configuration of topic"
	results, err := s.admin.DescribeConfigs([]*sarama.ConfigResource{
		{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{"max.message.bytes"}},
	}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return 0, explain(topic, doing, err)
	}
	if len(results) != 1 {
		return 0, explain(topic, doing, fmt.Errorf("%d resources in the answer", len(results)))
	}
	switch code := results[0].ErrorCode; code {
	case sarama.ErrNoError:
	case sarama.ErrTopicAuthorizationFailed:
		return defaultMaxMessage, nil
	default:
		return 0, explain(topic, doing, code)
	}
	for _, e := range results[0].Configs {
		if e.Name != "max.message.bytes" {
			continue
		}
		n, err := strconv.Atoi(e.Value)
		if err != nil || n < 2*recordOverhead {
			return 0, explain(topic, doing, fmt.Errorf("max.message.bytes is %q", e.Value))
		}
		return n, nil
	}
	return defaultMaxMessage, nil
}
