// Package system starts the whole MQTT integration in the process of a test and
// gives it what it needs to be used: an administrator, users with API keys and
// tokens, applications with topics.
//
//	s := system.Start(t, system.Options{})
//	app := s.CreateApplication(t, 4)
//	… connect to s.MQTT() as app.Owner.Name with app.Owner.Key, produce to app.Topic at s.Brokers …
//
// It runs on the Kafka of testkit.Kafka: an emulated one, or the real one of
// TEST_KAFKA_BROKERS. All names are unique, so that tests share a real Kafka.
// Whatever is started ends with the test.
package system
