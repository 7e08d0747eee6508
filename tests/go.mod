module mqtt-integration/tests

go 1.26.0

require (
	mqtt-integration/libs v0.0.0
	mqtt-integration/libs/testkit v0.0.0
	mqtt-integration/proto v0.0.0
	mqtt-integration/services/authorization v0.0.0
	mqtt-integration/services/command-ingress v0.0.0
	mqtt-integration/services/event-fanout v0.0.0
	mqtt-integration/services/mqi v0.0.0
	mqtt-integration/services/mqtt-frontend v0.0.0
	mqtt-integration/services/standalone v0.0.0
)

require (
	github.com/IBM/sarama v1.61.1 // indirect
	github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2 v2.16.2 // indirect
	github.com/cloudevents/sdk-go/v2 v2.16.2 // indirect
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/eapache/go-resiliency v1.7.0 // indirect
	github.com/eclipse/paho.golang v0.23.0 // indirect
	github.com/eclipse/paho.mqtt.golang v1.5.1 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	github.com/hashicorp/go-uuid v1.0.3 // indirect
	github.com/jcmturner/aescts/v2 v2.0.0 // indirect
	github.com/jcmturner/dnsutils/v2 v2.0.0 // indirect
	github.com/jcmturner/gofork v1.7.6 // indirect
	github.com/jcmturner/gokrb5/v8 v8.4.4 // indirect
	github.com/jcmturner/rpc/v2 v2.0.3 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	github.com/pierrec/lz4/v4 v4.1.33 // indirect
	github.com/rcrowley/go-metrics v0.0.0-20250401214520-65e299d6c5c9 // indirect
	go.uber.org/goleak v1.3.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.uber.org/zap v1.27.0 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261005182115-fad411399dd8 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace mqtt-integration/libs => ../libs

replace mqtt-integration/proto => ../proto

replace mqtt-integration/libs/testkit => ../libs/testkit

replace mqtt-integration/services/authorization => ../services/authorization

replace mqtt-integration/services/mqtt-frontend => ../services/mqtt-frontend

replace mqtt-integration/services/event-fanout => ../services/event-fanout

replace mqtt-integration/services/command-ingress => ../services/command-ingress

replace mqtt-integration/services/standalone => ../services/standalone

replace mqtt-integration/services/mqi => ../services/mqi
