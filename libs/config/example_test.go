package config_test

import (
	"fmt"
	"os"
	"time"

	"mqtt-integration/libs/config"
)

func Example() {
	type store struct {
		DSN      string          `yaml:"dsn"`
		Password config.Secret   `yaml:"password"`
		Timeout  time.Duration   `yaml:"timeout"`
		Cache    config.ByteSize `yaml:"cache"`
	}
	cfg := struct {
		Store store `yaml:"store"`
	}{Store: store{Timeout: 5 * time.Second, Cache: 64 * config.MiB}}

	environ := []string{"AUTHORIZATION_STORE_DSN=file:auth.db", "AUTHORIZATION_STORE_PASSWORD=hunter2"}
	if err := config.Load(&cfg, "", environ, "AUTHORIZATION"); err != nil {
		fmt.Println(err)
	}
	if err := config.Print(os.Stdout, cfg); err != nil {
		fmt.Println(err)
	}
	// Output:
	// store:
	//   dsn: file:auth.db
	//   password: '[redacted]'
	//   timeout: 5s
	//   cache: 64MiB
}
