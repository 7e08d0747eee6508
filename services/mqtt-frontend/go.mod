module mqtt-integration/services/mqtt-frontend

go 1.26.0

require (
	mqtt-integration/libs v0.0.0
	mqtt-integration/libs/testkit v0.0.0
	mqtt-integration/proto v0.0.0
)

replace mqtt-integration/libs => ../../libs

replace mqtt-integration/proto => ../../proto

replace mqtt-integration/libs/testkit => ../../libs/testkit
