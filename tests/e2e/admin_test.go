//go:build e2e

package e2e_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

// administration is a connection to the administration API.
type administration struct {
	adminv1.AdminServiceClient
	token string
}

func administrate(t *testing.T, address, token string) administration {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close administration: %v", err)
		}
	})
	return administration{adminv1.NewAdminServiceClient(conn), token}
}

func (a administration) context(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token)
}

// account is a user with an application of its own.
type account struct {
	user, key, keyID string
	application      string
	// topic is that of the application's events.
	topic string
}

// account makes a user of an issuer, whose subject is its name, with an
// application, its topic and an API key.
func (a administration) account(t *testing.T, brokers []string, issuer string) account {
	t.Helper()
	name := testkit.UniqueName(t)
	acc := account{user: "u-" + name, application: name, topic: naming.EventsTopic(name)}
	testkit.CreateTopic(t, brokers, acc.topic, 2)
	if _, err := a.CreateUser(a.context(t), &adminv1.CreateUserRequest{Issuer: issuer, Subject: acc.user, Name: acc.user}); err != nil {
		t.Fatalf("create user: %v", err)
	}
	if _, err := a.CreateApplication(a.context(t), &adminv1.CreateApplicationRequest{Name: name, Owner: acc.user}); err != nil {
		t.Fatalf("create application: %v", err)
	}
	made, err := a.CreateApiKey(a.context(t), &adminv1.CreateApiKeyRequest{User: acc.user})
	if err != nil {
		t.Fatalf("create API key: %v", err)
	}
	acc.key, acc.keyID = made.GetKey(), made.GetApiKey().GetId()
	return acc
}
