module mqtt-integration/services/standalone

go 1.26.0

require (
	mqtt-integration/libs v0.0.0
	mqtt-integration/libs/testkit v0.0.0
	mqtt-integration/proto v0.0.0
	mqtt-integration/services/authorization v0.0.0
	mqtt-integration/services/command-ingress v0.0.0
	mqtt-integration/services/event-fanout v0.0.0
	mqtt-integration/services/mqtt-frontend v0.0.0
)

replace mqtt-integration/libs => ../../libs

replace mqtt-integration/proto => ../../proto

replace mqtt-integration/libs/testkit => ../../libs/testkit

replace mqtt-integration/services/authorization => ../../services/authorization

replace mqtt-integration/services/mqtt-frontend => ../../services/mqtt-frontend

replace mqtt-integration/services/event-fanout => ../../services/event-fanout

replace mqtt-integration/services/command-ingress => ../../services/command-ingress
