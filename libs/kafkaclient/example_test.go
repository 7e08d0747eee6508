package kafkaclient_test

import (
	"fmt"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/kafkaclient"
)

// Each role makes its own copy and its own client.
func Example() {
	cfg := kafkaclient.Config{Brokers: []string{"localhost:9092"}, ClientID: "command-ingress"}
	producing, err := cfg.Sarama()
	if err != nil {
		fmt.Println(err)
		return
	}
	producing.Producer.Idempotent = true
	producing.Net.MaxOpenRequests = 1
	producing.Producer.Return.Successes = true
	// Here: sarama.NewAsyncProducer(cfg.Brokers, producing)
	fmt.Println(producing.Producer.RequiredAcks == sarama.WaitForAll, producing.Validate())
	// Output: true <nil>
}
