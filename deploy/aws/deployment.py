"""An environment in an account: its stacks in order, the image, and the check at the end.

`k9-base-ENV` (repository, network) → image → `k9-data-ENV` (tables, bucket) → `k9-service-ENV`
(API, worker, load balancer, Valkey) → `k9-alarms-ENV`; where the tables' units are provisioned,
`k9-capacity-ENV` scales them, and where backups are asked for, `k9-backup-ENV` makes them. Each
takes the outputs of those before it as parameters. Within the service the worker is changed before
the API.
"""

from collections.abc import Mapping
from typing import Any, Final

from core.settings import Settings
from deploy.aws import stacks
from deploy.aws.clients import open_client
from deploy.aws.data_stack import stack_spec as data_spec
from deploy.aws.deployment_options import (
    Deployment,
    Network,
    check_name,
    check_parameters,
    own_address,
    template_parameters,
)
from deploy.aws.images import build_image, check_docker, push_image
from deploy.aws.replicas import ensure_replicas
from deploy.aws.smoke_test import check_api
from deploy.aws.stacks import Plan, StackSpec
from deploy.aws.tables import ensure_settings
from deploy.aws.user_pool import check_pool, claim_pool, release_pool
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

_ON_TOP: Final = ("lambda", "backup")
"""Stacks that use what the others make, and that `delete` leaves to whoever made them."""
_PLACES: Final = ("VpcCidr", "PublicSubnets", "PrivateSubnets", "TaskSubnets", "PublicAddresses")
"""Parameters of the service that say where it stands, beside `VpcId`."""
_GATEWAY_SERVICES: Final = ("dynamodb", "s3")


class Deployer:
    """Applies an environment's stacks with one CloudFormation client."""

    def __init__(self, settings: Settings, client: Any, message: MessageCallback) -> None:
        self._settings = settings
        self._client = client
        self._message = message
        self._environment = settings.environment

    async def check(self, deployment: Deployment) -> None:
        """Checks credentials, the pool, the options and docker, before anything is changed.

        Raises:
            CommandError: with what is wrong and what to do.
        """
        check_name(self._environment)
        check_parameters(deployment.parameters)
        data_spec(self._settings, {})  # which refuses names of tables that are not the template's
        async with open_client("sts", self._settings) as client:
            identity = await client.get_caller_identity()
        self._message(
            f"account {identity['Account']}, {self._settings.aws.region}, as {identity['Arn']}"
        )
        if self._environment != "dev":
            if not deployment.certificate_arn and not await self._has("CertificateArn"):
                raise CommandError(
                    f"{self._environment} needs TLS: give --certificate-arn (only `dev` may go "
                    "without, and then listens to one range of addresses)"
                )
            if not deployment.domain and not await self._has("Domain"):
                raise CommandError(f"{self._environment} needs --domain, a name of the certificate")
        if self._settings.aws.region in deployment.replica_regions:
            raise CommandError(
                f"{self._settings.aws.region} is the region of the tables themselves: a replica is "
                "in another one"
            )
        await self._check_network(deployment.network)
        await check_pool(self._settings, deployment.pool_id)
        if deployment.image is None:
            await check_docker()

    async def dry_run(self, deployment: Deployment) -> None:
        """Shows what would change; makes change sets, and removes them again."""
        await self._show(await self._base(deployment))
        if deployment.image is None:
            self._message("the image would be built and pushed")
        await self._show_data(deployment)
        base, service = await self._outputs("base"), await self._outputs("service")
        network = deployment.network or await self._kept_network() or base
        if not network:
            self._message(
                f"{self._name('service')}, {self._name('alarms')}: not planned, nor their "
                "parameters checked, since they take the addresses of a network that is not there"
            )
            return
        image = deployment.image or (await self._values("service")).get("Image", "to-be-built")
        await self._show(await self._service(deployment, base, image))
        if deployment.alarms and service:
            await self._show(self._alarms(deployment, service))
        elif deployment.alarms:
            self._message(
                f"{self._name('alarms')}: not planned, nor its parameters checked, since it takes "
                "the names of a load balancer that is not there"
            )
        if await self._is_backed_up(deployment):
            await self._show(await self._backup(deployment, base, image))

    async def _show_data(self, deployment: Deployment) -> None:
        spec, billing = await self._data_spec(deployment)
        capacity = self._name("capacity")
        scaled = await stacks.describe(self._client, capacity) is not None
        if scaled and billing != "provisioned":
            self._message(f"{capacity} to delete")
        await self._show(spec)
        if billing == "provisioned":
            await self._show(self._spec("capacity", self._of("capacity", deployment)))
        for region in deployment.replica_regions:
            self._message(f"each table would have a replica in {region}")

    async def _show(self, spec: StackSpec) -> None:
        await stacks.discard(self._client, await self._plan(spec, dry_run=True))

    async def deploy(self, deployment: Deployment) -> str:
        """Creates or updates everything; returns the API's address.

        Raises:
            CommandError: a step failed. What CloudFormation was changing is as it was before; where
                the API does not answer after an update, the update is undone.
        """
        base = await self._apply(await self._base(deployment))
        image = deployment.image or await self._image(deployment, base)
        await self._data(deployment)
        await ensure_settings(self._settings, self._message)
        if deployment.replica_regions:
            await ensure_replicas(self._settings, deployment.replica_regions, self._message)
        await claim_pool(self._settings, deployment.pool_id)
        before = await self._current("service")
        service = await self._apply(await self._service(deployment, base, image))
        if deployment.smoke_test:
            await self._smoke_test(service, before, deployment.smoke_wait_s)
        if deployment.alarms:
            await self._apply(self._alarms(deployment, service))
        if await self._is_backed_up(deployment):
            await self._apply(await self._backup(deployment, base, image))
        return service["Url"]

    async def delete(self, pool_id: str | None) -> None:
        """Deletes all but the data: tables, their backups and the bucket stay.

        Raises:
            CommandError: a stack stands on these, or CloudFormation does not delete one.
        """
        for name in map(self._name, _ON_TOP):
            if await stacks.describe(self._client, name) is not None:
                raise CommandError(
                    f"{name} stands on these stacks: delete it first, by `aws cloudformation "
                    f"delete-stack --stack-name {name}`"
                )
        service = await stacks.describe(self._client, self._name("service"))
        pool_id = pool_id or stacks.parameter_values(service).get("UserPoolId")
        for name in ("alarms", "service", "capacity", "base"):
            self._message(f"deleting {self._name(name)}")
            if not await stacks.delete(self._client, self._name(name), self._message):
                self._message(f"{self._name(name)}: there is none")
        if pool_id:
            await release_pool(self._settings, pool_id)

    # --- stacks -----------------------------------------------------------------------------------

    async def _base(self, deployment: Deployment) -> StackSpec:
        others = deployment.network or await self._kept_network()
        own = "false" if others else "true"
        return self._spec("base", {"CreateNetwork": own, **self._of("base", deployment)})

    async def _data_spec(self, deployment: Deployment) -> tuple[StackSpec, str | None]:
        """The stack of the data, and the tables' billing in it."""
        given = self._of("data", deployment)
        if deployment.replica_regions:
            given = {"Streams": "on", **given}  # which replication is made of
        spec = data_spec(self._settings, given)
        return spec, {**await self._values("data"), **spec.parameters}.get("Billing")

    async def _data(self, deployment: Deployment) -> None:
        """The tables and the bucket, and what scales units that are provisioned."""
        spec, billing = await self._data_spec(deployment)
        if billing != "provisioned":
            # Before the change: a table on demand has no units that could be scaled.
            await stacks.delete(self._client, self._name("capacity"), self._message)
        await self._apply(spec)
        if billing == "provisioned":
            await self._apply(self._spec("capacity", self._of("capacity", deployment)))

    async def _service(
        self, deployment: Deployment, base: Mapping[str, str], image: str
    ) -> StackSpec:
        parameters = {
            "Image": image,
            "UserPoolId": deployment.pool_id,
            **await self._network(deployment.network, base),
        }
        given = {
            "CertificateArn": deployment.certificate_arn,
            "Domain": deployment.domain,
            "ClientRange": deployment.client_range,
        }
        parameters |= {name: value for name, value in given.items() if value}
        parameters |= self._of("service", deployment)
        for name in ("CertificateArn", "ClientRange"):
            if name in parameters or await self._has(name):
                break
        else:
            parameters["ClientRange"] = await own_address()
        return self._spec("service", parameters)

    def _alarms(self, deployment: Deployment, service: Mapping[str, str]) -> StackSpec:
        names = ("LoadBalancerFullName", "TargetGroupFullName")
        return self._spec(
            "alarms", {**{n: service[n] for n in names}, **self._of("alarms", deployment)}
        )

    async def _is_backed_up(self, deployment: Deployment) -> bool:
        """Whether backups are asked for, or were: their image is replaced with the service's."""
        return deployment.backups or bool(await self._values("backup"))

    async def _backup(
        self, deployment: Deployment, base: Mapping[str, str], image: str
    ) -> StackSpec:
        places = await self._network(deployment.network, base)
        topic = (await self._outputs("alarms")).get("TopicArn")
        parameters = {
            "Image": image,
            **{name: places[name] for name in ("VpcId", "TaskSubnets", "PublicAddresses")},
            **({"AlarmTopicArn": topic} if topic else {}),
            **self._of("backup", deployment),
        }
        return self._spec("backup", parameters)

    def _spec(self, name: str, parameters: Mapping[str, str]) -> StackSpec:
        template = (stacks.TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8")
        parameters = {"Environment": self._environment, **parameters}
        return StackSpec(self._name(name), template, parameters)

    def _name(self, stack: str) -> str:
        return f"k9-{stack}-{self._environment}"

    def _of(self, stack: str, deployment: Deployment) -> dict[str, str]:
        """The parameters given that the stack's template has."""
        known = template_parameters(stack)
        return {name: value for name, value in deployment.parameters.items() if name in known}

    async def _has(self, parameter: str) -> bool:
        """Whether the service that exists has a value of its own for a parameter."""
        value = (await self._values("service")).get(parameter, "")
        return value not in {"", "0.0.0.0/0"}

    async def _values(self, stack: str) -> dict[str, str]:
        """The parameters of a stack that was made: a failed creation leaves none to go on with."""
        found = await stacks.describe(self._client, self._name(stack))
        return stacks.parameter_values(found) if found and stacks.is_made(found) else {}

    async def _outputs(self, stack: str) -> dict[str, str]:
        return await stacks.outputs(self._client, self._name(stack))

    async def _plan(self, spec: StackSpec, *, dry_run: bool = False) -> Plan:
        """A change set, which is shown."""
        planned = await stacks.plan(self._client, spec, self._message, dry_run=dry_run)
        if planned.change == "unchanged":
            self._message(f"{spec.name}: no change")
        else:
            verb = {"created": "to create", "updated": "to update"}[planned.change]
            self._message(f"{spec.name} {verb}:")
            for change in planned.changes:
                self._message(f"  {change}")
        return planned

    async def _apply(self, spec: StackSpec) -> dict[str, str]:
        return await stacks.execute(self._client, await self._plan(spec), self._message)

    async def _kept_network(self) -> dict[str, str]:
        """What the service keeps of an existing VPC, where it was put into one."""
        if (await self._values("base")).get("CreateNetwork") != "false":
            return {}
        values = await self._values("service")
        return {name: values[name] for name in ("VpcId", *_PLACES) if name in values}

    async def _check_network(self, network: Network | None) -> None:
        """An environment stays in the VPC that it was put into.

        Raises:
            CommandError: the options would move it, or do not say where it is to stand.
        """
        before = (await self._values("base")).get("CreateNetwork")
        kept = await self._kept_network()
        if network is None and before == "false" and not kept:
            raise CommandError(
                f"{self._name('base')} was made without a network, and no service is there yet: "
                "give --vpc-id, --public-subnets and --private-subnets again"
            )
        if network is not None and (
            before == "true" or kept.get("VpcId", network.vpc_id) != network.vpc_id
        ):
            where = kept.get("VpcId", "a VPC of its own")
            raise CommandError(
                f"{self._environment} stands in {where}, and cannot be moved: leave out --vpc-id, "
                "or --delete it first (its data stays)"
            )

    async def _network(self, network: Network | None, base: Mapping[str, str]) -> dict[str, str]:
        """The service's parameters that say where it stands."""
        if network is None:
            return await self._kept_network() or {name: base[name] for name in ("VpcId", *_PLACES)}
        async with open_client("ec2", self._settings) as client:
            vpcs = (await client.describe_vpcs(VpcIds=[network.vpc_id]))["Vpcs"]
            endpoints = await client.describe_vpc_endpoints(
                Filters=[{"Name": "vpc-id", "Values": [network.vpc_id]}]
            )
        present = {each["ServiceName"].rpartition(".")[2] for each in endpoints["VpcEndpoints"]}
        for missing in sorted(set(_GATEWAY_SERVICES) - present):
            self._message(
                f"note: {network.vpc_id} has no gateway endpoint of {missing}, so its traffic "
                "passes, and is billed by, the way out of the subnets"
            )
        return {
            "VpcId": network.vpc_id,
            "VpcCidr": vpcs[0]["CidrBlock"],
            "PublicSubnets": ",".join(network.public_subnets),
            "PrivateSubnets": ",".join(network.private_subnets),
            "TaskSubnets": ",".join(network.private_subnets),
            "PublicAddresses": "DISABLED",
        }

    # --- image and check --------------------------------------------------------------------------

    async def _image(self, deployment: Deployment, base: Mapping[str, str]) -> str:
        image_id = await build_image(self._message, build_options=deployment.build_options)
        return await push_image(
            self._settings,
            image_id,
            deployment.repository or base["RepositoryUri"],
            self._message,
            is_ecr=deployment.repository is None,
        )

    async def _current(self, stack: str) -> StackSpec | None:
        """The stack as it is deployed now; None if there is none."""
        name = self._name(stack)
        found = await stacks.describe(self._client, name)
        if found is None or not stacks.is_made(found):
            return None
        reply = await self._client.get_template(StackName=name, TemplateStage="Original")
        return StackSpec(name, str(reply["TemplateBody"]), await self._values(stack))

    async def _smoke_test(
        self, service: Mapping[str, str], before: StackSpec | None, wait_s: float
    ) -> None:
        try:
            await check_api(
                service["Url"], service["LoadBalancerDnsName"], self._message, wait_s=wait_s
            )
        except CommandError as error:
            if before is None:
                raise CommandError(f"{error}; it was never deployed before, so it stays") from error
            self._message(f"{error}: going back to what was deployed before")
            await self._apply(before)
            raise CommandError(f"{error}; what was deployed before is back") from error
